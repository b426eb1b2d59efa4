import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { DiTError, fileError, invalidOption, show } from './errors.js'
import type { Seed } from './options.js'
import { isUint8Array } from './realms.js'

/** Pixels, as every image library takes them: rows from the top, channels innermost, 8 bits each. */
export interface Pixels {
  /** height * width * channels bytes. */
  data: Uint8Array
  /** In pixels. */
  width: number
  /** In pixels. */
  height: number
  /** 1: grey, 3: RGB. */
  channels: number
}

const encoders = { '.png': 'png', '.webp': 'webp', '.jpg': 'jpeg', '.jpeg': 'jpeg' } as const

/**
 * An image, as `dit.sample` and `dit.decode` make it.
 *
 * @example
 * const [image] = await dit.sample('golden retriever', { seed: 1 })
 * await image.toFile('dog.png')
 * console.log(image.width, image.height, image.seed)
 */
export class RawImage implements Pixels {
  /** height * width * channels bytes: rows from the top, channels innermost. */
  readonly data: Uint8Array
  /** In pixels. */
  readonly width: number
  /** In pixels. */
  readonly height: number
  /** 1: grey, 3: RGB. */
  readonly channels: number
  /** The seed that makes this image again; absent for decoded latents. */
  readonly seed?: Seed
  /** The class number it was made for; absent for embeddings and decoded latents. */
  readonly label?: number

  /**
   * An image of pixels from elsewhere.
   *
   * Throws ERR_DIT_SHAPE when `data` has not height * width * channels bytes.
   *
   * @example
   * const grey = new RawImage({ data: new Uint8Array(8 * 8), width: 8, height: 8, channels: 1 })
   */
  constructor(pixels: Pixels, made: { seed?: Seed; label?: number } = {}) {
    const { data, width, height, channels } = checkPixels('image', pixels)
    this.data = data
    this.width = width
    this.height = height
    this.channels = channels
    if (made.seed !== undefined) this.seed = made.seed
    if (made.label !== undefined) this.label = made.label
  }

  /**
   * The bytes of a PNG file.
   *
   * Rejects with ERR_DIT_PLATFORM when the package sharp cannot be loaded.
   *
   * @example
   * const [image] = await dit.sample('golden retriever')
   * const answer = new Response(await image.toPNG(), { headers: { 'content-type': 'image/png' } })
   */
  async toPNG(): Promise<Buffer> {
    const image = await this.#sharp()
    return image.png().toBuffer()
  }

  /**
   * The bytes of a WebP file: a fraction of a PNG's size, with small losses.
   *
   * Rejects with ERR_DIT_PLATFORM when the package sharp cannot be loaded, ERR_DIT_SHAPE for an image of
   * more than 16383 pixels across, which WebP has not.
   *
   * @example
   * const [image] = await dit.sample('golden retriever')
   * const answer = new Response(await image.toWebP(), { headers: { 'content-type': 'image/webp' } })
   */
  async toWebP(): Promise<Buffer> {
    const image = await this.#sharp()
    const encoded = image.webp().toBuffer()
    return encoded.catch((cause: Error) => {
      throw new DiTError('ERR_DIT_SHAPE', `Cannot make a WebP of this: ${cause.message}`, { cause })
    })
  }

  /**
   * Writes a file; its name's end says the format: .png, .webp, .jpg or .jpeg.
   *
   * Rejects with ERR_DIT_OPTION for another end, ERR_DIT_FILE when the file cannot be written,
   * ERR_DIT_PLATFORM when the package sharp cannot be loaded.
   *
   * @example
   * const [image] = await dit.sample('golden retriever')
   * await image.toFile('dog.webp')
   */
  async toFile(file: string): Promise<void> {
    if (typeof file !== 'string') throw invalidOption('file', 'a path', file)
    const end = path.extname(file).toLowerCase()
    if (!Object.hasOwn(encoders, end)) {
      throw invalidOption('file', `a name that ends in ${Object.keys(encoders).join(', ')}`, file)
    }
    const image = await this.#sharp()
    const encoded = image[encoders[end as keyof typeof encoders]]().toBuffer()
    const bytes = await encoded.catch((cause: Error) => {
      // A format's limits: WebP has no images of more than 16383 pixels across.
      throw new DiTError('ERR_DIT_FILE', `Cannot write ${file}: ${cause.message}`, { cause })
    })
    try {
      // sharp's own toFile reports every failure as one text; this tells a missing folder apart.
      await writeFile(file, bytes)
    } catch (cause) {
      throw fileError(file, 'write', cause)
    }
  }

  async #sharp() {
    const { default: sharp } = await import('sharp').catch((cause: unknown) => {
      throw new DiTError(
        'ERR_DIT_PLATFORM',
        'Images are encoded by the package sharp, which cannot be loaded here: npm install sharp',
        { cause },
      )
    })
    const { width, height, channels } = this
    return sharp(this.data, { raw: { width, height, channels: channels as 1 | 3 } })
  }
}

/** @internal */
export function checkPixels(name: string, pixels: unknown): Pixels {
  const { data, width, height, channels } = (pixels ?? {}) as Partial<Pixels>
  const sizes = [width, height, channels]
  if (
    !isUint8Array(data) ||
    !sizes.every((size) => Number.isSafeInteger(size) && (size as number) > 0)
  ) {
    throw invalidOption(name, 'pixels { data: Uint8Array, width, height, channels }', pixels)
  }
  const [w, h, c] = sizes as [number, number, number]
  if (data.length !== w * h * c) {
    throw new DiTError(
      'ERR_DIT_SHAPE',
      `${name}: ${h} rows of ${w} pixels with ${c} channels are ${w * h * c} bytes, but data has ` +
        `${data.length}`,
    )
  }
  return { data, width: w, height: h, channels: c }
}

/** How much is copied, into memory that is new, before the event loop has its turn: about 1 ms. */
const bytesPerTurn = 1 << 20
const maxGap = 4096 // pixels

/**
 * Puts images of one size into one, row by row.
 *
 * @param images As `dit.sample` gives them, or any pixels.
 * @param options.columns Images per row. Default: as square as can be.
 * @param options.gap Black pixels between the images. Default 0.
 *
 * Rejects with ERR_DIT_OPTION when there are no images, ERR_DIT_SHAPE when their sizes differ.
 *
 * @example
 * const images = await dit.sample([0, 1, 2, 3])
 * const grid = await imageGrid(images, { columns: 2 })
 * await grid.toFile('grid.png')
 */
export async function imageGrid(
  images: readonly Pixels[],
  options: { columns?: number; gap?: number } = {},
): Promise<RawImage> {
  const [first] = Array.isArray(images) ? images : []
  if (first === undefined) throw invalidOption('images', 'at least one image', images)
  const { columns = Math.ceil(Math.sqrt(images.length)), gap = 0 } = options
  if (!Number.isSafeInteger(columns) || columns < 1) {
    throw invalidOption('columns', 'an integer of at least 1', columns)
  }
  if (!Number.isSafeInteger(gap) || gap < 0 || gap > maxGap) {
    throw invalidOption('gap', `an integer from 0 to ${maxGap}`, gap)
  }
  const { width, height, channels } = checkPixels('images[0]', first)
  const rows = Math.ceil(images.length / columns)
  const across = Math.min(columns, images.length)
  const gridWidth = across * width + (across - 1) * gap
  const gridHeight = rows * height + (rows - 1) * gap
  const data = new Uint8Array(gridWidth * gridHeight * channels)
  let copied = 0
  for (const [i, image] of images.entries()) {
    const pixels = checkPixels(`images[${i}]`, image)
    if (pixels.width !== width || pixels.height !== height || pixels.channels !== channels) {
      throw new DiTError(
        'ERR_DIT_SHAPE',
        `Expected ${width}×${height} pixels with ${channels} channels for images[${i}], as images[0] ` +
          `has, but got ${pixels.width}×${pixels.height} with ${pixels.channels}`,
      )
    }
    const left = (i % columns) * (width + gap)
    const top = Math.floor(i / columns) * (height + gap)
    const rowBytes = width * channels
    for (let y = 0; y < height; y++) {
      const row = pixels.data.subarray(y * rowBytes, (y + 1) * rowBytes)
      data.set(row, ((top + y) * gridWidth + left) * channels)
    }
    copied += pixels.data.length
    if (copied >= bytesPerTurn) {
      await setImmediate()
      copied = 0
    }
  }
  return new RawImage({ data, width: gridWidth, height: gridHeight, channels })
}

/** Pixels as the VAE takes them: [channels, height, width], -1 to 1. @internal */
export function toFloats({ data, width, height, channels }: Pixels, out: Float32Array): void {
  const plane = width * height
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < channels; c++) {
      out[c * plane + i] = (data[i * channels + c] as number) / 127.5 - 1
    }
  }
}

/** The images of n * height * width * channels bytes, each with memory of its own. @internal */
export function splitImages(
  { bytes, height, width, channels }: Omit<Pixels, 'data'> & { bytes: Uint8Array },
  made: readonly { seed?: Seed; label?: number }[],
): RawImage[] {
  const size = height * width * channels
  if (bytes.length !== made.length * size) {
    throw new DiTError(
      'ERR_DIT_INTERNAL',
      `Expected ${made.length} images of ${size} bytes but got ${show(bytes)}`,
    )
  }
  return made.map((of, i) => {
    const data = made.length === 1 ? bytes : bytes.slice(i * size, (i + 1) * size)
    return new RawImage({ data, width, height, channels }, of)
  })
}
