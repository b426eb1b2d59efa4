// Between the arrays of the public API and those of native jobs.

import { DiTError, invalidOption } from './errors.js'
import type { VaeConfig } from './formats/types.js'
import { checkPixels, type Pixels, toFloats } from './image.js'
import type { DoneEvent } from './jobs.js'
import { downscale } from './sampling.js'
import { checkTensor, isTensor, slice, type Tensor } from './tensor.js'

/**
 * A tensor of n rows, put together from those of several jobs as they end: at the end of a call there
 * could be too much to copy at once.
 *
 * @internal
 */
export class Gathered {
  #tensor: Tensor | undefined

  constructor(private readonly n: number) {}

  /** Takes what a job gave for the rows from `begin` on. */
  add({ floats, shape }: DoneEvent, begin: number): void {
    if (floats === null) throw new DiTError('ERR_DIT_INTERNAL', 'the job gave no numbers')
    const [rows = 0, ...rest] = shape
    if (rows === this.n) {
      this.#tensor = { data: floats, shape }
      return
    }
    const size = floats.length / rows
    this.#tensor ??= { data: new Float32Array(this.n * size), shape: [this.n, ...rest] }
    this.#tensor.data.set(floats, begin * size)
  }

  get tensor(): Tensor {
    if (this.#tensor === undefined) throw new DiTError('ERR_DIT_INTERNAL', 'no job has ended')
    return this.#tensor
  }
}

/** @internal */
export function bytesOf({ bytes, height, width, channels }: DoneEvent) {
  if (bytes === null) throw new DiTError('ERR_DIT_INTERNAL', 'the job gave no images')
  return { bytes, height, width, channels }
}

/** One timestep for all of n, or n of them. @internal */
export function checkTimesteps(t: unknown, n: number, steps: number): Float32Array {
  const list = (typeof t === 'number' ? new Array(n).fill(t) : t) as ArrayLike<unknown> | null
  if (typeof list !== 'object' || typeof list?.length !== 'number') {
    throw invalidOption('t', 'a number or an array of them', t)
  }
  if (list.length !== n) {
    throw new DiTError('ERR_DIT_SHAPE', `Expected ${n} timesteps for t but got ${list.length}`)
  }
  return Float32Array.from(list, (value) => {
    if (typeof value === 'number' && value >= 0 && value <= steps - 1) return value
    throw invalidOption('t', `numbers from 0 to ${steps - 1}`, value)
  })
}

/** Images as numbers from -1 to 1, made when they are needed: converting takes time. @internal */
export function imageFloats(images: unknown, vae: VaeConfig) {
  const scale = downscale(vae)
  const check = (height: number, width: number, channels: number) => {
    if (channels === vae.inChannels && height % scale === 0 && width % scale === 0) return
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `Expected images with ${vae.inChannels} channels and sizes that are multiples of ${scale} but ` +
        `got ${width}×${height} with ${channels} channels`,
    )
  }
  if (isTensor(images)) {
    checkTensor('images', images, ['n', 'channels', 'height', 'width'])
    const [n = 0, channels = 0, height = 0, width = 0] = images.shape
    check(height, width, channels)
    return { n, height, width, floats: (begin: number, end: number) => slice(images, begin, end) }
  }
  const list = Array.isArray(images) ? images : [images]
  if (list.length === 0) throw invalidOption('images', 'at least one image', images)
  const pixels = list.map((image, i) => checkPixels(`images[${i}]`, image))
  const { height, width, channels } = pixels[0] as Pixels
  check(height, width, channels)
  const odd = pixels.find(
    (image) => image.height !== height || image.width !== width || image.channels !== channels,
  )
  if (odd) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `Expected images of one size, ${width}×${height}×${channels}, but got one of ` +
        `${odd.width}×${odd.height}×${odd.channels}`,
    )
  }
  const floats = (begin: number, end: number) => {
    const size = height * width * channels
    const out = new Float32Array((end - begin) * size)
    for (let i = begin; i < end; i++) {
      toFloats(pixels[i] as Pixels, out.subarray((i - begin) * size, (i - begin + 1) * size))
    }
    return out
  }
  return { n: pixels.length, height, width, floats }
}
