// Looks for GPUs in a process of its own: a damaged driver may hang or end the one that asks it.

import { execFile } from 'node:child_process'
import type { DeviceInfo as NativeDevice } from '../bindings.js'

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
    threads: 0,
  }
}

/**
 * The GPUs of this machine, or one entry that says why there are none.
 *
 * @param file The native part.
 * @internal
 */
export function probeCuda(file: string, seconds = timeLimit): Promise<NativeDevice[]> {
  return new Promise((resolve) => {
    const fail = (problem: string) => resolve([noCuda(problem)])
    execFile(
      process.execPath,
      ['-e', program, file],
      {
        timeout: 1000 * seconds,
        killSignal: 'SIGKILL',
        // Options for this process, such as a debugger's, are none for that one.
        env: { ...process.env, NODE_OPTIONS: '', ELECTRON_RUN_AS_NODE: '1' },
      },
      (error, stdout, stderr) => {
        // The last line: a driver may print something, too.
        if (error === null) resolve(JSON.parse(stdout.slice(stdout.lastIndexOf('\n'))))
        else if (error.killed) fail(`the NVIDIA driver did not answer within ${seconds} s`)
        else if (error.signal)
          fail(`the NVIDIA driver failed: a test of it ended with ${error.signal}`)
        else fail(`the test of the NVIDIA driver failed: ${stderr.trim() || error.message}`)
      },
    )
  })
}
