import { isError } from './realms.js'

/** The codes, at run time; `DiTErrorCode` explains them. */
export const ditErrorCodes = [
  'ERR_DIT_OPTION',
  'ERR_DIT_SHAPE',
  'ERR_DIT_FORMAT',
  'ERR_DIT_FILE',
  'ERR_DIT_DEVICE',
  'ERR_DIT_OOM',
  'ERR_DIT_DEVICE_LOST',
  'ERR_DIT_NONFINITE',
  'ERR_DIT_BUSY',
  'ERR_DIT_DEADLINE',
  'ERR_DIT_CLOSED',
  'ERR_DIT_PLATFORM',
  'ERR_DIT_INTERNAL',
] as const

/**
 * Every way in which dit-native refuses or fails, as `DiTError.code`:
 *
 * | code | meaning | what helps |
 * |---|---|---|
 * | `ERR_DIT_OPTION` | an argument or option has a wrong type or value, or a needed one is missing | change the call |
 * | `ERR_DIT_SHAPE` | an array or tensor has the wrong shape or length | change the data |
 * | `ERR_DIT_FORMAT` | a file is damaged, unsafe, or not a checkpoint that this package reads | another file, or convert it |
 * | `ERR_DIT_FILE` | a file, folder or download is missing or cannot be read or written | path, permissions, network, token |
 * | `ERR_DIT_DEVICE` | the device asked for is absent or cannot do what was asked | `DiT.devices()` |
 * | `ERR_DIT_OOM` | not enough memory on the device | smaller batch, lower precision |
 * | `ERR_DIT_DEVICE_LOST` | the GPU failed while it worked, for this whole process | `close()`; start the process anew |
 * | `ERR_DIT_NONFINITE` | an image came out as NaN or infinite; so did many training steps in a row | sound weights and noise, less guidance; sound data, a lower learning rate |
 * | `ERR_DIT_BUSY` | the queue is full (`maxQueue`), or the model is doing something that excludes this call | wait: `retryAfter` seconds, where it says so |
 * | `ERR_DIT_DEADLINE` | the images cannot be there by the call's `deadline` | wait `retryAfter` seconds, allow more time, or ask for fewer steps |
 * | `ERR_DIT_CLOSED` | the model was closed | load it again |
 * | `ERR_DIT_PLATFORM` | no binary for this operating system, processor or C library | build from source |
 * | `ERR_DIT_INTERNAL` | a defect of this package | report it |
 */
export type DiTErrorCode = (typeof ditErrorCodes)[number]

/**
 * The one error class of this package. `message` says what was expected, what was got and what to
 * do; `cause` is the error underneath, where there is one.
 *
 * @example
 * try {
 *   await DiT.load('./no-such-folder')
 * } catch (error) {
 *   if (error instanceof DiTError && error.code === 'ERR_DIT_FILE') console.error(error.message)
 *   else throw error
 * }
 */
export class DiTError extends Error {
  /** Tells it apart from other errors where `instanceof` cannot: of another realm or copy. */
  override readonly name = 'DiTError'
  /** What kind of refusal or failure it is; never changes, as the message may. */
  readonly code: DiTErrorCode
  /**
   * Of a call that was refused because of what else is to be done: the seconds after which it would
   * probably be taken, estimated from measured step times. For an HTTP server's `Retry-After`.
   */
  readonly retryAfter?: number

  /** An error as the package's own, for those who extend it. */
  constructor(
    code: DiTErrorCode,
    message: string,
    { retryAfter, ...options }: { cause?: unknown; retryAfter?: number | undefined } = {},
  ) {
    super(message, options)
    this.code = code
    if (retryAfter !== undefined) this.retryAfter = retryAfter
  }
}

/** A short, safe rendering of any value for an error message (at most 80 characters). */
export function show(value: unknown): string {
  let text: string
  if (typeof value === 'string') text = `'${value}'`
  else if (typeof value === 'bigint') text = `${value}n`
  else if (typeof value === 'function') text = `function ${value.name}`
  else if (ArrayBuffer.isView(value))
    text = `${value.constructor.name} of ${value.byteLength} bytes`
  else if (typeof value === 'object' && value !== null) {
    try {
      text = JSON.stringify(value)
    } catch (error) {
      // Cyclic, or with a throwing toJSON: its type must do, the message is about something else.
      text = `${Object.prototype.toString.call(value)} (${(error as Error).name})`
    }
  } else text = String(value)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}

/** `Expected <expected> for <name> but got <actual>`: a wrong argument or option. */
export function invalidOption(name: string, expected: string, actual: unknown): DiTError {
  return new DiTError('ERR_DIT_OPTION', `Expected ${expected} for ${name} but got ${show(actual)}`)
}

/** `<file>: <problem>`: a file that is damaged, unsafe or of an unknown kind. */
export function badFormat(file: string, problem: string, cause?: unknown): DiTError {
  return new DiTError('ERR_DIT_FORMAT', `${file}: ${problem}`, withCause(cause))
}

const systemProblems: Record<string, string> = {
  ENOENT: 'there is no such file or folder',
  ENOTDIR: 'a part of the path is a file, not a folder',
  EISDIR: 'it is a folder, but a file was expected',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EMFILE: 'too many open files',
  ENOSPC: 'no space left on the disk',
  EDQUOT: 'the disk quota is used up',
  EFBIG: 'the file would be larger than is allowed',
  EROFS: 'the file system is read-only',
  ELOOP: 'too many symbolic links',
  ENAMETOOLONG: 'the path is too long',
}

/** An error of the file system as `ERR_DIT_FILE`; a `DiTError` or an abort passes unchanged. */
export function fileError(file: string, action: 'read' | 'write', cause: unknown): unknown {
  if (cause instanceof DiTError || !isError(cause)) return cause
  const code = (cause as NodeJS.ErrnoException).code
  if (cause.name === 'AbortError' || code === undefined) return cause
  const problem = systemProblems[code] ?? cause.message
  return new DiTError('ERR_DIT_FILE', `Cannot ${action} ${file}: ${problem} (${code})`, { cause })
}

function withCause(cause: unknown): { cause?: unknown } {
  return cause === undefined ? {} : { cause }
}
