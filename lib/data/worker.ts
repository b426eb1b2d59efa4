// What runs in the decoding threads: listing big folders, and pictures from their files to a model's
// numbers. The main thread only passes names and arrays on.

import { createHash } from 'node:crypto'
import type { Stats } from 'node:fs'
import { opendir, stat } from 'node:fs/promises'
import path from 'node:path'
import { move, transferableSymbol, valueSymbol } from 'piscina'
import { fileError } from '../errors.js'
import { centreCrop, mirror, toModel } from './crop.js'

/** A picture to be read. */
export interface DecodeTask {
  /** A file's path, or a file's bytes. */
  image: string | Uint8Array
  channels: 1 | 3
  height: number
  width: number
  mirrored: boolean
}

/** Numbers [channels, height, width] from -1 to 1, or why there are none. */
export type Decoded = Float32Array | string

/** Upright (EXIF), in sRGB, what is transparent white, cut to size. */
export async function decode(task: DecodeTask): Promise<Decoded> {
  const { image, channels, height, width, mirrored } = task
  const sharp = await loadSharp()
  let numbers: Float32Array
  try {
    const { data, info } = await sharp(image, { failOn: 'warning' })
      .autoOrient()
      .flatten({ background: '#ffffff' })
      .toColourspace('srgb')
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true })
    const bytes = new Uint8ClampedArray(data.buffer, data.byteOffset, data.length)
    numbers = toModel(centreCrop({ ...info, data: bytes }, height, width), channels)
  } catch (error) {
    // The lines that follow may be of other threads: libvips has one list of messages for all.
    return (error as Error).message.split('\n', 1)[0] as string
  }
  if (mirrored) mirror(numbers, width)
  return move(numbers) as Float32Array
}

async function loadSharp() {
  const { default: sharp } = await import('sharp')
  sharp.cache(false) // a file is read once an epoch
  sharp.concurrency(1) // pictures are decoded side by side, each by one thread
  return sharp
}

/** The pictures of a folder of class folders. */
export interface Listing {
  /** Names of the class folders, in order of their code points. */
  classes: string[]
  /** How many pictures each has. */
  counts: number[]
  /** Paths within the folder, in UTF-8, one after the other: by class, then in order of code points. */
  names: Uint8Array
  /** Where each path begins, and where the last one ends. */
  starts: Uint32Array
  /** The class of each. */
  labels: Int32Array
  /** SHA-256 of all names. */
  hash: string
}

const isPicture = /\.(jpe?g|png|webp)$/i

/** Lists a folder; why it cannot be read otherwise. Names that begin with a dot are passed over. */
export async function list(folder: string): Promise<Listing | string> {
  try {
    return await listClasses(folder)
  } catch (cause) {
    const error = fileError(folder, 'read', cause) as Error
    return error.message
  }
}

async function listClasses(folder: string): Promise<Listing> {
  const root = await readFolder(folder)
  const names: Buffer[] = []
  const counts: number[] = []
  const classes = sorted(root.folders)
  for (const name of classes) {
    const files: string[] = []
    await collect(path.join(folder, name), name, [root.id], files)
    for (const file of sorted(files)) names.push(Buffer.from(`${file}\0`))
    counts.push(files.length)
  }
  const all = new Uint8Array(Buffer.concat(names)) // of its own memory, which can be handed over
  const starts = new Uint32Array(names.length + 1)
  for (const [i, { length }] of names.entries()) starts[i + 1] = (starts[i] as number) + length
  const labels = new Int32Array(names.length)
  let begin = 0
  for (const [label, count] of counts.entries()) {
    labels.fill(label, begin, begin + count)
    begin += count
  }
  const hash = createHash('sha256')
    .update(`${classes.join('\0')}\0\0`)
    .update(all)
    .digest('hex')
  const listing: Listing = { classes, counts, names: all, starts, labels, hash }
  const buffers = [all.buffer, starts.buffer, labels.buffer]
  return move({ [transferableSymbol]: buffers, [valueSymbol]: listing }) as unknown as Listing
}

/** Pictures in a folder at any depth, as paths that begin with `prefix`. */
async function collect(
  folder: string,
  prefix: string,
  parents: readonly string[],
  files: string[],
): Promise<void> {
  const { id, ...entries } = await readFolder(folder)
  if (parents.includes(id)) return // a link to a folder that this one is in
  for (const name of entries.files) if (isPicture.test(name)) files.push(`${prefix}/${name}`)
  for (const name of entries.folders) {
    await collect(path.join(folder, name), `${prefix}/${name}`, [...parents, id], files)
  }
}

/** Links count as what they point to. */
async function readFolder(folder: string) {
  const { dev, ino } = await stat(folder)
  const folders: string[] = []
  const files: string[] = []
  for await (const entry of await opendir(folder, { bufferSize: 1024 })) {
    if (entry.name.startsWith('.')) continue
    const kind = entry.isSymbolicLink() ? await kindOfTarget(path.join(folder, entry.name)) : entry
    if (kind === undefined || kind.isFile()) files.push(entry.name)
    else if (kind.isDirectory()) folders.push(entry.name)
  }
  return { id: `${dev}:${ino}`, folders, files }
}

/** What a link points to; undefined where there is nothing, which is reported when it is read. */
function kindOfTarget(link: string): Promise<Stats | undefined> {
  return stat(link).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
}

/** In order of code points, which is that of the bytes of UTF-8. */
function sorted(names: readonly string[]): string[] {
  return names
    .map((name) => ({ name, bytes: Buffer.from(name) }))
    .sort((a, b) => Buffer.compare(a.bytes, b.bytes))
    .map(({ name }) => name)
}
