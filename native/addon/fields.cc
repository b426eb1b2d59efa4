#include "addon/fields.h"

#include <cmath>

namespace dit::addon {
namespace {

template <typename T>
constexpr napi_typedarray_type kArrayType = napi_float32_array;
template <>
constexpr napi_typedarray_type kArrayType<int32_t> = napi_int32_array;
template <>
constexpr napi_typedarray_type kArrayType<uint8_t> = napi_uint8_array;
template <>
constexpr napi_typedarray_type kArrayType<uint64_t> = napi_biguint64_array;

constexpr double kMaxSafeInteger = 9007199254740991.0;  // 2^53 - 1

bool isInteger(const Napi::Value& value) {
  if (!value.IsNumber()) return false;
  const double number = value.As<Napi::Number>().DoubleValue();
  return number == std::trunc(number) && std::abs(number) <= kMaxSafeInteger;
}

}  // namespace

Fields::Fields(const Napi::Value& value, const char* type) : type_(type) {
  DIT_CHECK(value.IsObject(), ErrorCode::Internal, "Expected an object for ", type);
  object_ = value.As<Napi::Object>();
}

void Fields::refuse(const char* name, const char* expected) const {
  fail(ErrorCode::Internal, "Expected ", expected, " for ", name, " of ", type_);
}

Napi::Value Fields::get(const char* name, bool (Napi::Value::*is)() const,
                        const char* expected) const {
  const Napi::Value value = object_.Get(name);
  if (!(value.*is)()) refuse(name, expected);
  return value;
}

Fields Fields::object(const char* name, const char* type) const {
  return {get(name, &Napi::Value::IsObject, "an object"), type};
}

Napi::Array Fields::list(const char* name) const {
  return get(name, &Napi::Value::IsArray, "an array").As<Napi::Array>();
}

Napi::Uint8Array Fields::bytes(const char* name) const {
  const Napi::Value value = get(name, &Napi::Value::IsTypedArray, "a Uint8Array");
  if (value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    refuse(name, "a Uint8Array");
  }
  return value.As<Napi::Uint8Array>();
}

double Fields::number(const char* name) const {
  return get(name, &Napi::Value::IsNumber, "a number").As<Napi::Number>().DoubleValue();
}

int64_t Fields::integer(const char* name) const {
  const Napi::Value value = object_.Get(name);
  if (!isInteger(value)) refuse(name, "an integer");
  return value.As<Napi::Number>().Int64Value();
}

int64_t Fields::count(const char* name) const {
  const int64_t value = integer(name);
  if (value < 0) refuse(name, "an integer that is not negative");
  return value;
}

bool Fields::flag(const char* name) const {
  return get(name, &Napi::Value::IsBoolean, "a boolean").As<Napi::Boolean>().Value();
}

std::string Fields::text(const char* name) const {
  return get(name, &Napi::Value::IsString, "a string").As<Napi::String>().Utf8Value();
}

uint64_t Fields::bigint(const char* name) const {
  bool lossless = false;
  const uint64_t value =
      get(name, &Napi::Value::IsBigInt, "a bigint").As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) refuse(name, "a bigint from 0 to 2^64 - 1");
  return value;
}

std::vector<int64_t> Fields::integers(const char* name) const {
  const Napi::Array array = list(name);
  std::vector<int64_t> values;
  values.reserve(array.Length());
  for (uint32_t i = 0; i < array.Length(); i++) {
    const Napi::Value value = array.Get(i);
    if (!isInteger(value)) refuse(name, "an array of integers");
    values.push_back(value.As<Napi::Number>().Int64Value());
  }
  return values;
}

template <typename T>
std::vector<T> Fields::copyOf(const Napi::Value& value, const char* name) const {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != kArrayType<T>) {
    refuse(name, "a typed array of the type in bindings.d.ts");
  }
  const auto array = value.As<Napi::TypedArrayOf<T>>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

template std::vector<float> Fields::copyOf(const Napi::Value&, const char*) const;
template std::vector<int32_t> Fields::copyOf(const Napi::Value&, const char*) const;
template std::vector<uint8_t> Fields::copyOf(const Napi::Value&, const char*) const;
template std::vector<uint64_t> Fields::copyOf(const Napi::Value&, const char*) const;

std::vector<std::vector<float>> Fields::vectorsOrNone(const char* name) const {
  std::vector<std::vector<float>> vectors;
  if (isNull(name)) return vectors;
  const Napi::Array array = list(name);
  for (uint32_t i = 0; i < array.Length(); i++) {
    const Napi::Value value = array.Get(i);
    vectors.push_back(value.IsNull() ? std::vector<float>() : copyOf<float>(value, name));
  }
  return vectors;
}

}  // namespace dit::addon
