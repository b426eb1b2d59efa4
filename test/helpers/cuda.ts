import type { Device } from '../../lib/index.js'

/** The CUDA sources, run on the CPU by test/simt. Not in the types: the package has no such device. */
export const emulated = 'cuda:emulated' as string as Device
