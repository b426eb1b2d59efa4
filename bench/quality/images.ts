// Images as the classifier takes them, 28×28 grey pixels of 8 bits, from the files of Fashion-MNIST and
// from models of 16×16 and 32×32 pixels.

import path from 'node:path'
import { findIdx, readIdx } from '../../lib/data/idx_file.js'
import type { Pixels } from '../../lib/index.js'

/** Pixels of a side, in the files of Fashion-MNIST and for the classifier. */
export const side = 28
/** Pixels of a side with the border of zeros that models are trained with. */
const padded = 32

export const debianPackage = 'dataset-fashion-mnist'
/** Where Debian's package puts its files. */
export const debianFolder = '/usr/share/datasets/fashion-mnist'

/** n images of 28×28 pixels with their classes. */
export interface Labelled {
  /** [n, 28, 28], 0 to 255. */
  readonly pixels: Uint8Array
  readonly labels: Uint8Array
}

/** One part of Fashion-MNIST: 'train' (60 000 images) or 't10k' (10 000), the test set. */
export async function readFashion(folder: string, part: 'train' | 't10k'): Promise<Labelled> {
  const names = [`${part}-images-idx3-ubyte`, `${part}-labels-idx1-ubyte`] as const
  for (const name of names) {
    if ((await findIdx(folder, name)) !== undefined) continue
    throw new Error(
      `${path.join(folder, name)}.gz is missing. Fashion-MNIST is the Debian package ${debianPackage}: ` +
        `apt-get install ${debianPackage}; or name a folder with its four files: --data=folder`,
    )
  }
  const images = await readIdx(folder, names[0], 3)
  const labels = await readIdx(folder, names[1], 1)
  const [n, height, width] = images.shape
  if (height !== side || width !== side || labels.shape[0] !== n) {
    throw new Error(`${images.file} and ${labels.file} are not those of Fashion-MNIST`)
  }
  return { pixels: images.bytes, labels: labels.bytes }
}

/** The first `perClass` images of each class, class after class. */
export function firstOfEach({ pixels, labels }: Labelled, perClass: number): Labelled {
  const classes = Math.max(...labels) + 1
  const chosen = Array.from({ length: classes }, (_, label) => {
    const found = [...labels.keys()].filter((i) => labels[i] === label).slice(0, perClass)
    if (found.length < perClass) throw new Error(`class ${label} has only ${found.length} images`)
    return found
  }).flat()
  return {
    pixels: Uint8Array.from(chosen.flatMap((i) => [...imageAt(pixels, i)])),
    labels: Uint8Array.from(chosen, (i) => labels[i] as number),
  }
}

export function imageAt(pixels: Uint8Array, i: number): Uint8Array {
  return pixels.subarray(i * side ** 2, (i + 1) * side ** 2)
}

/** Each pixel becomes a square of factor by factor equal ones. */
export function enlarge({ data, width, height, channels }: Pixels, factor: number): Pixels {
  const out = new Uint8Array(data.length * factor ** 2)
  let at = 0
  for (let y = 0; y < height * factor; y++) {
    for (let x = 0; x < width * factor; x++) {
      const from = (Math.floor(y / factor) * width + Math.floor(x / factor)) * channels
      out.set(data.subarray(from, from + channels), at)
      at += channels
    }
  }
  return { data: out, width: width * factor, height: height * factor, channels }
}

/** Throws for images of a model that the classifier cannot take: of other sizes, or in colours. */
export function checkShape({ width, height, channels }: Omit<Pixels, 'data'>): void {
  if (channels !== 1 || width !== height || (width !== 16 && width !== padded)) {
    throw new Error(
      `Expected a model of grey images of 16×16 or 32×32 pixels, this makes ${width}×${height} with ` +
        `${channels} channels`,
    )
  }
}

/**
 * A model's image as the classifier takes it: one of 16×16 pixels is enlarged by 2, and the border of
 * 2 pixels is cut off.
 */
export function fromModel(image: Pixels): Uint8Array {
  checkShape(image)
  const { data } = enlarge(image, padded / image.width)
  const border = (padded - side) / 2
  const out = new Uint8Array(side ** 2)
  for (let y = 0; y < side; y++) {
    const from = (y + border) * padded + border
    out.set(data.subarray(from, from + side), y * side)
  }
  return out
}

/** A real image as a model of `size` pixels is shown it: padded to 32×32; for 16, averaged 2×2. */
export function toModel(image: Uint8Array, size: number): Pixels {
  const border = (padded - side) / 2
  const whole = new Uint8Array(padded ** 2)
  for (let y = 0; y < side; y++) {
    whole.set(image.subarray(y * side, (y + 1) * side), (y + border) * padded + border)
  }
  const factor = padded / size
  const data = new Uint8Array(size ** 2)
  for (let i = 0; i < data.length; i++) {
    const corner = Math.floor(i / size) * factor * padded + (i % size) * factor
    let sum = 0
    for (let j = 0; j < factor ** 2; j++) {
      sum += whole[corner + Math.floor(j / factor) * padded + (j % factor)] as number
    }
    data[i] = Math.round(sum / factor ** 2)
  }
  return { data, width: size, height: size, channels: 1 }
}

/** Real images as they look at the size of a model: what its samples are compared with. */
export function atModelSize({ pixels, labels }: Labelled, size: number): Labelled {
  const out = new Uint8Array(pixels.length)
  for (let i = 0; i < labels.length; i++) {
    out.set(fromModel(toModel(imageAt(pixels, i), size)), i * side ** 2)
  }
  return { pixels: out, labels }
}
