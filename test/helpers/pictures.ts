// Pictures and folders of them, for the tests of training data.

import { mkdirSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import type { DataBatch, OpenData, OpenDataOptions } from '../../lib/data/types.js'
import { temporaryFolder } from './files.js'

/** Bytes that follow from their number and a seed alone. */
export function noise(length: number, seed: number): Uint8Array {
  let state = Math.imul(seed + 1, 0x9e3779b9) | 1
  return Uint8Array.from({ length }, () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state >>> 24
  })
}

/** Coloured noise with no finer detail than 4 pixels, so that JPEG keeps it. */
export function picture(width: number, height: number, seed: number) {
  const [w, h] = [Math.ceil(width / 4), Math.ceil(height / 4)]
  const raw = { width: w, height: h, channels: 3 } as const
  return sharp(noise(w * h * 3, seed), { raw }).resize(width, height, { fit: 'fill' })
}

/** `classes` folders of `perClass` JPEGs of different sizes. */
export async function pictureFolder(classes: readonly string[], perClass: number): Promise<string> {
  const folder = temporaryFolder()
  for (const [c, name] of classes.entries()) {
    mkdirSync(path.join(folder, name))
    for (let i = 0; i < perClass; i++) {
      const file = path.join(folder, name, `${i}.jpg`)
      await picture(20 + 7 * i, 24 + 3 * c, perClass * c + i).toFile(file)
    }
  }
  return folder
}

/** A model of pixels. */
export function pixelModel(
  channels: number,
  size: number,
  numClasses = 10,
): OpenDataOptions['model'] {
  return { channels, latentSize: [size, size], numClasses, classNames: {}, vae: undefined }
}

/** The first batches of the data. */
export async function take(
  data: OpenData,
  count: number,
  options: { batchSize: number; position?: number; seed?: bigint; flip?: boolean },
): Promise<DataBatch[]> {
  const batches: DataBatch[] = []
  const { position = 0, seed = 1n, flip = true, batchSize } = options
  for await (const batch of data.batches({ batchSize, position, seed, flip })) {
    batches.push(batch)
    if (batches.length === count) break
  }
  return batches
}

/** What of batches is always the same: not the time, nor the decoder's words for what is damaged. */
export function contents(batches: readonly DataBatch[]) {
  return batches.map(({ waited: _, skipped, ...batch }) => {
    return { ...batch, skipped: skipped.map(({ item }) => item) }
  })
}
