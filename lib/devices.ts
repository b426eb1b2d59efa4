import type { DeviceInfo as NativeDevice } from '../bindings.js'
import { DiTError, show } from './errors.js'
import { native } from './native.js'
import type { Device, Precision } from './options.js'

/** A device of this machine, or why it cannot be used. */
export type DeviceInfo =
  | {
      /** What the option `device` calls it. */
      device: string
      available: true
      /** Of the processor. */
      name: string
      /** The instruction set in use: 'generic', 'avx2', 'avx512', 'avx512bf16'. */
      isa: string
      precisions: Precision[]
      memoryBytes: number
      /** Cores. */
      threads: number
    }
  | { device: string; available: false; reason: string }

const noCuda = 'this build of dit-native has no CUDA'

/** @internal */
export function listDevices(): DeviceInfo[] {
  const usable = native().devices()
  return [
    ...usable.map((info) => ({ ...info, available: true }) as const),
    { device: 'cuda', available: false, reason: noCuda },
  ]
}

/**
 * The device and the precision that options ask for.
 *
 * Throws ERR_DIT_DEVICE when they are not to be had here.
 *
 * @internal
 */
export function chooseDevice(
  device: Device = 'auto',
  precision?: Precision,
): { device: string; precision: Precision } {
  if (device.startsWith('cuda')) {
    throw new DiTError(
      'ERR_DIT_DEVICE',
      `No device ${show(device)}: ${noCuda}. Use 'cpu' or 'auto'`,
    )
  }
  const cpu = native().devices()[0] as NativeDevice
  const chosen = precision ?? (cpu.precisions.includes('bf16') ? 'bf16' : 'fp32')
  if (!cpu.precisions.includes(chosen)) {
    throw new DiTError(
      'ERR_DIT_DEVICE',
      `This processor (${cpu.name}, ${cpu.isa}) has no ${chosen}. ` +
        `Use precision ${cpu.precisions.map(show).join(' or ')}`,
    )
  }
  return { device: cpu.device, precision: chosen }
}
