// Where models can run, and where one is to.

import { existsSync } from 'node:fs'
import path from 'node:path'
import type { DeviceInfo as NativeDevice } from '../bindings.js'
import { noCuda, probeCuda } from './cuda_probe.js'
import { usableProcessors } from './doctor/machine.js'
import { DiTError, show } from './errors.js'
import { native, nativeFile } from './native.js'
import type { BatchOptions, Device, DeviceOptions, Precision } from './options.js'

/** A device of this machine, or why it cannot be used. */
export type DeviceInfo =
  | {
      /** What the option `device` calls it. */
      device: 'cpu'
      available: true
      /** Of the processor. */
      name: string
      /** The instruction set in use: 'generic', 'avx2', 'avx512', 'avx512bf16'. */
      isa: string
      /** What it computes in. */
      precisions: Precision[]
      /** Of the machine in all; a container may be allowed less. */
      memoryBytes: number
      /** Cores that this process may use. */
      threads: number
    }
  | {
      device: `cuda:${number}`
      available: true
      /** Of the GPU. */
      name: string
      /** What the driver calls its generation: '8.0' is Ampere, '9.0' Hopper. */
      computeCapability: string
      /** The kernels in use: 'sm_80' for Ampere and whatever has no others, 'sm_90a' for Hopper. */
      arch: string
      /** What it computes in. */
      precisions: Precision[]
      /** Of the GPU in all. */
      memoryBytes: number
    }
  | {
      device: string
      available: false
      /** Why it cannot be used; `dit doctor` tells what helps. */
      reason: string
    }

/** @internal */
export async function listDevices(): Promise<DeviceInfo[]> {
  const { name, kernels: isa, precisions, memoryBytes } = native().cpuDevice()
  const details = { name, isa, precisions, memoryBytes, threads: usableProcessors() }
  return [{ device: 'cpu', available: true, ...details }, ...(await probedCuda()).map(publicCuda)]
}

function publicCuda(info: NativeDevice): DeviceInfo {
  const { device, problem, name, computeCapability, kernels: arch, precisions, memoryBytes } = info
  if (problem !== '') return { device, available: false, reason: problem }
  return {
    device: device as `cuda:${number}`,
    available: true,
    name,
    computeCapability,
    arch,
    precisions,
    memoryBytes,
  }
}

let probed: Promise<NativeDevice[]> | undefined

/** The GPUs, or one entry that says why there are none; looked for once a process. */
function probedCuda(): Promise<NativeDevice[]> {
  probed ??= probe()
  return probed
}

async function probe(): Promise<NativeDevice[]> {
  const problem = native().cudaObstacle()
  return problem === '' ? probeCuda(nativeFile()) : [noCuda(problem)]
}

/** The kernels' sources run on the CPU, slowly, by the tests; the package does not have it. */
const emulatedDevice = 'cuda:emulated'

/** Whether the option `device` may have this value on this machine. @internal */
export function isDevice(value: unknown): value is Device {
  if (value !== emulatedDevice) return /^(auto|cpu|cuda(:\d{1,3})?)$/.test(String(value))
  return existsSync(path.join(path.dirname(nativeFile()), 'libdit_cuda_emulated.so'))
}

/**
 * The option maxBatch, by default. On a CPU a row costs the same however many there are (measured from
 * 1 to 16 lanes, within 5 %: a product runs for each row alone), so lanes make nothing faster there;
 * they let an image begin while others are in the making.
 */
const maxLanes = { cpu: 4, cuda: 32 }

type PlaceOptions = Pick<DeviceOptions, 'device' | 'precision' | 'threads'> & BatchOptions

/** Where a model is to run, and how much at once. @internal */
export interface Place {
  device: string
  precision: Precision
  threads: number
  maxLanes: number
  maxQueue: number | null
}

/**
 * The device and the precision that options ask for.
 *
 * Rejects with ERR_DIT_DEVICE when they are not to be had here.
 *
 * @internal
 */
export async function chooseDevice({
  device: wanted = 'auto',
  precision,
  threads,
  maxBatch,
  maxQueue,
}: PlaceOptions): Promise<Place> {
  const device = await findDevice(wanted)
  const chosen = precision ?? (device.precisions.includes('bf16') ? 'bf16' : 'fp32')
  if (!device.precisions.includes(chosen)) {
    throw new DiTError(
      'ERR_DIT_DEVICE',
      `This processor (${device.name}, ${device.kernels}) has no ${chosen}. ` +
        `Use precision ${device.precisions.map(show).join(' or ')}`,
    )
  }
  const lanes = maxBatch ?? (device.device === 'cpu' ? maxLanes.cpu : maxLanes.cuda)
  return {
    device: device.device,
    precision: chosen,
    threads: threads || usableProcessors(),
    maxLanes: lanes,
    maxQueue: maxQueue ?? null,
  }
}

async function findDevice(wanted: Device): Promise<NativeDevice> {
  if (wanted === 'cpu') return native().cpuDevice()
  if (wanted === 'auto') {
    const found = await probedCuda()
    return found.find(({ problem }) => problem === '') ?? native().cpuDevice()
  }
  if ((wanted as string) === emulatedDevice) {
    return { ...noCuda(''), device: wanted, precisions: ['fp32', 'tf32', 'bf16'] }
  }
  // Asked here, not in another process: whoever insists wants it to be used here, whatever happens.
  const problem = native().cudaObstacle()
  const found = problem === '' ? native().cudaDevices() : [noCuda(problem)]
  const name = wanted === 'cuda' ? 'cuda:0' : wanted
  const device = found.find((one) => one.device === name || one.device === 'cuda')
  if (device?.problem === '') return device
  const reason = device?.problem ?? `the last is ${found.at(-1)?.device}`
  throw new DiTError('ERR_DIT_DEVICE', `No device ${show(wanted)}: ${reason}. Use 'cpu' or 'auto'`)
}
