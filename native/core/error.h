#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace dit {

// What went wrong, in the words of the public API: each value is the `code` of a DiTError
// (`errorCodeName(ErrorCode::Shape)` is "ERR_DIT_SHAPE").
enum class ErrorCode {
  Option,      // an option has a value that cannot be used
  Shape,       // a tensor has another shape or type than the operation needs
  Format,      // a file does not hold what its format promises
  File,        // a file cannot be opened, mapped or written
  Device,      // the device or the precision asked for is not to be had here
  Oom,         // memory is exhausted; the model stays usable
  DeviceLost,  // the device failed for good; the model has to be loaded anew
  Busy,        // the queue is full
  Deadline,    // the images cannot be there in time
  Closed,      // the model was closed
  NonFinite,   // a result is NaN or infinite
  Aborted,     // the caller cancelled the work
  Internal,    // a broken invariant of this library
};

const char* errorCodeName(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

namespace detail {

template <typename... Parts>
std::string concat(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

}  // namespace detail

// Throws an Error whose message is the parts in a row.
template <typename... Parts>
[[noreturn]] void fail(ErrorCode code, Parts&&... parts) {
  throw Error(code, detail::concat(std::forward<Parts>(parts)...));
}

}  // namespace dit

// A precondition that survives NDEBUG: throws dit::Error with the message parts that follow.
// The parts are evaluated only when the condition does not hold.
#define DIT_CHECK(condition, code, ...)               \
  do {                                                \
    if (!(condition)) ::dit::fail(code, __VA_ARGS__); \
  } while (false)
