// Looks for GPUs in a process of its own: a damaged driver may hang or end the one that asks it.

import type { DeviceInfo as NativeDevice } from '../bindings.js'
import { runInChild } from './child.js'

/** Seconds. A driver that was not in use takes some for every GPU. */
const timeLimit = 60

/** Lists the GPUs and calculates on one after another until one is right. */
const program = `
const binding = require(process.argv[1])
const devices = binding.cudaDevices()
for (const device of devices) {
  if (device.problem !== '') continue
  try {
    binding.tryDevice(device.device)
    break
  } catch (error) {
    device.problem = error.message
  }
}
process.stdout.write('\\n' + JSON.stringify(devices))
`

/** @internal */
export function noCuda(problem: string): NativeDevice {
  return {
    device: 'cuda',
    problem,
    name: '',
    kernels: '',
    computeCapability: '',
    precisions: [],
    memoryBytes: 0,
  }
}

/**
 * The GPUs of this machine, or one entry that says why there are none.
 *
 * @param file The native part.
 * @internal
 */
export async function probeCuda(file: string, seconds = timeLimit): Promise<NativeDevice[]> {
  const result = await runInChild(program, file, seconds)
  switch (result.outcome) {
    case 'done':
      return result.value as NativeDevice[]
    case 'late':
      return [noCuda(`the NVIDIA driver did not answer within ${seconds} s`)]
    case 'killed':
      return [noCuda(`the NVIDIA driver failed: a test of it ended with ${result.by}`)]
    case 'failed':
      return [noCuda(`the test of the NVIDIA driver failed: ${result.reason}`)]
  }
}
