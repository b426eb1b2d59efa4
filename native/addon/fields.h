#pragma once

#include <napi.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace dit::addon {

// Reads the fields of a plain JS object whose type bindings.d.ts names. What lib/ passes has been
// checked there; a field that is missing or of another type is a defect of this library and throws
// ErrorCode::Internal, so that it never becomes undefined behaviour.
class Fields {
 public:
  Fields(const Napi::Value& value, const char* type);

  Napi::Env env() const { return object_.Env(); }
  Fields object(const char* name, const char* type) const;
  Napi::Array list(const char* name) const;
  Napi::Uint8Array bytes(const char* name) const;
  bool isNull(const char* name) const { return object_.Get(name).IsNull(); }

  double number(const char* name) const;
  int64_t integer(const char* name) const;
  int64_t count(const char* name) const;  // an integer that is not negative
  bool flag(const char* name) const;
  std::string text(const char* name) const;
  uint64_t bigint(const char* name) const;
  std::vector<int64_t> integers(const char* name) const;

  // A copy of a typed array with elements of T; where it may be null, empty for null.
  template <typename T>
  std::vector<T> copy(const char* name) const {
    return copyOf<T>(object_.Get(name), name);
  }
  template <typename T>
  std::vector<T> copyOrNone(const char* name) const {
    return isNull(name) ? std::vector<T>() : copy<T>(name);
  }
  // One copy an element of an array of typed arrays; none for a null element.
  std::vector<std::vector<float>> vectorsOrNone(const char* name) const;

 private:
  Napi::Value get(const char* name, bool (Napi::Value::*is)() const, const char* expected) const;
  [[noreturn]] void refuse(const char* name, const char* expected) const;
  template <typename T>
  std::vector<T> copyOf(const Napi::Value& value, const char* name) const;

  Napi::Object object_;
  const char* type_;
};

}  // namespace dit::addon
