// What a value is, whichever context of `vm` made it. `instanceof` knows the classes of its own
// context alone: under Jest the tests have a Float32Array of their own, and errors of the file system
// are of another Error.
import { types } from 'node:util'

/** @internal */
export const isError: (value: unknown) => value is Error = types.isNativeError
/** @internal */
export const isFloat32Array: (value: unknown) => value is Float32Array = types.isFloat32Array
/** @internal */
export const isUint8Array: (value: unknown) => value is Uint8Array = types.isUint8Array
