#pragma once

namespace dit {

// What a round costs, learned from the rounds that there were: seconds = a + b rows, least squares
// in which a round of long ago counts less (by kMemory for each round since). On a CPU b is all; on
// a GPU a few rows cost as much as one. While all rounds had the same number of rows, b is all,
// too.
class RoundCost {
 public:
  void add(double rows, double seconds);

  bool measured() const { return weight_ > 0; }
  // Of a round with so many rows; 0 before anything was measured.
  double seconds(double rows) const;
  // Moving averages: of a round, and of a row of it.
  double averageRound() const { return measured() ? seconds_ / weight_ : 0; }
  double averageRow() const { return measured() ? seconds_ / rows_ : 0; }

 private:
  static constexpr double kMemory = 0.98;

  double weight_ = 0, rows_ = 0, seconds_ = 0, rowsRows_ = 0, rowsSeconds_ = 0;  // decayed sums
};

}  // namespace dit
