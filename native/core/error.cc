#include "core/error.h"

namespace dit {

const char* errorCodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::Option:
      return "ERR_DIT_OPTION";
    case ErrorCode::Shape:
      return "ERR_DIT_SHAPE";
    case ErrorCode::Format:
      return "ERR_DIT_FORMAT";
    case ErrorCode::File:
      return "ERR_DIT_FILE";
    case ErrorCode::Device:
      return "ERR_DIT_DEVICE";
    case ErrorCode::Oom:
      return "ERR_DIT_OOM";
    case ErrorCode::DeviceLost:
      return "ERR_DIT_DEVICE_LOST";
    case ErrorCode::Deadline:
      return "ERR_DIT_DEADLINE";
    case ErrorCode::Busy:
      return "ERR_DIT_BUSY";
    case ErrorCode::Closed:
      return "ERR_DIT_CLOSED";
    case ErrorCode::NonFinite:
      return "ERR_DIT_NONFINITE";
    case ErrorCode::Aborted:
      return "ERR_DIT_ABORTED";
    case ErrorCode::Internal:
      return "ERR_DIT_INTERNAL";
  }
  return "ERR_DIT_INTERNAL";
}

}  // namespace dit
