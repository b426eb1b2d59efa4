#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dit::test {

// A JSON document, for the tests' own files: headers of safetensors files, tables of tolerances,
// listings of the random weights. Objects keep the order of the text. Numbers are doubles.
class Json {
 public:
  enum class Kind { Null, Bool, Number, String, Array, Object };

  // Throws dit::Error (Format) with the offset of what it did not understand.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  double number() const;
  int64_t integer() const;
  const std::string& string() const;
  const std::vector<Json>& items() const;
  const std::vector<std::pair<std::string, Json>>& members() const;
  std::vector<int64_t> integers() const;

  // The member of that name; null where there is none.
  const Json* find(std::string_view name) const;
  // The same, but it has to be there.
  const Json& at(std::string_view name) const;

 private:
  friend class JsonParser;
  void expect(Kind kind) const;

  Kind kind_ = Kind::Null;
  double number_ = 0;
  std::string string_;
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace dit::test
