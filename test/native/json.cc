#include "json.h"

#include <charconv>

#include "core/error.h"

namespace dit::test {

// Recursive descent over the grammar of RFC 8259. Escapes \uXXXX are left out: no file of the
// tests has them, and one that does is refused.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = parseValue();
    skipSpace();
    check(at_ == text_.size(), "the end");
    return value;
  }

 private:
  void check(bool ok, const char* expected) const {
    DIT_CHECK(ok, ErrorCode::Format, "JSON: expected ", expected, " at offset ", at_);
  }

  void skipSpace() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) at_++;
  }

  bool accept(char c) {
    skipSpace();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }

  bool acceptWord(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  std::string parseString() {
    check(accept('"'), "a string");
    std::string value;
    while (at_ < text_.size() && text_[at_] != '"') {
      char c = text_[at_++];
      if (c == '\\') {
        check(at_ < text_.size(), "an escaped character");
        static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
        const size_t which = kFrom.find(text_[at_++]);
        check(which != kFrom.npos, "a simple escape before this");
        c = kTo[which];
      }
      value += c;
    }
    check(at_ < text_.size(), "the end of a string");
    at_++;
    return value;
  }

  Json parseValue() {
    skipSpace();
    Json value;
    if (accept('{')) {
      value.kind_ = Json::Kind::Object;
      if (accept('}')) return value;
      do {
        std::string name = parseString();
        check(accept(':'), "':'");
        value.members_.emplace_back(std::move(name), parseValue());
      } while (accept(','));
      check(accept('}'), "'}'");
    } else if (accept('[')) {
      value.kind_ = Json::Kind::Array;
      if (accept(']')) return value;
      do {
        value.items_.push_back(parseValue());
      } while (accept(','));
      check(accept(']'), "']'");
    } else if (at_ < text_.size() && text_[at_] == '"') {
      value.kind_ = Json::Kind::String;
      value.string_ = parseString();
    } else if (acceptWord("null")) {
      value.kind_ = Json::Kind::Null;
    } else if (acceptWord("true") || acceptWord("false")) {
      value.kind_ = Json::Kind::Bool;
      value.number_ = text_[at_ - 2] == 'u';
    } else {
      value.kind_ = Json::Kind::Number;
      const char* begin = text_.data() + at_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), value.number_);
      check(error == std::errc(), "a value");
      at_ += static_cast<size_t>(end - begin);
    }
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

void Json::expect(Kind kind) const {
  static constexpr const char* kNames[] = {"null", "bool", "number", "string", "array", "object"};
  DIT_CHECK(kind_ == kind, ErrorCode::Format, "JSON: expected a value of kind ",
            kNames[static_cast<int>(kind)], ", got ", kNames[static_cast<int>(kind_)]);
}

double Json::number() const {
  expect(Kind::Number);
  return number_;
}

int64_t Json::integer() const {
  const int64_t value = static_cast<int64_t>(number());
  DIT_CHECK(static_cast<double>(value) == number_, ErrorCode::Format, "JSON: ", number_,
            " is not an integer");
  return value;
}

const std::string& Json::string() const {
  expect(Kind::String);
  return string_;
}

const std::vector<Json>& Json::items() const {
  expect(Kind::Array);
  return items_;
}

const std::vector<std::pair<std::string, Json>>& Json::members() const {
  expect(Kind::Object);
  return members_;
}

std::vector<int64_t> Json::integers() const {
  std::vector<int64_t> values;
  for (const Json& item : items()) values.push_back(item.integer());
  return values;
}

const Json* Json::find(std::string_view name) const {
  for (const auto& [key, value] : members()) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Json& Json::at(std::string_view name) const {
  const Json* value = find(name);
  DIT_CHECK(value, ErrorCode::Format, "JSON: no member '", name, "'");
  return *value;
}

}  // namespace dit::test
