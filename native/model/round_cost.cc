#include "model/round_cost.h"

#include <algorithm>

namespace dit {

void RoundCost::add(double rows, double seconds) {
  const auto learn = [](double& sum, double value) { sum = kMemory * sum + value; };
  learn(weight_, 1);
  learn(rows_, rows);
  learn(seconds_, seconds);
  learn(rowsRows_, rows * rows);
  learn(rowsSeconds_, rows * seconds);
}

double RoundCost::seconds(double rows) const {
  if (!measured()) return 0;
  const double meanRows = rows_ / weight_, mean = seconds_ / weight_;
  const double variance = rowsRows_ / weight_ - meanRows * meanRows;
  const double covariance = rowsSeconds_ / weight_ - meanRows * mean;
  const double proportional = mean / meanRows;
  // Neither part of the cost is negative, whatever noise says.
  const double slope = variance > 1e-6 * meanRows * meanRows
                           ? std::clamp(covariance / variance, 0.0, proportional)
                           : proportional;
  return mean + slope * (rows - meanRows);
}

}  // namespace dit
