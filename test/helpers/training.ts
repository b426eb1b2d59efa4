import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import * as assert from 'uvu/assert'
import { DiT, type TrainEvent, type TrainingItem, type TrainOptions } from '../../lib/index.js'
import { temporaryFolder } from './files.js'

/** A model that trains in milliseconds: 8×8 grey pixels, three classes. */
export const tiny = {
  depth: 2,
  hidden: 32,
  heads: 2,
  latentSize: 8,
  channels: 1,
  numClasses: 3,
} as const

const pixels = 64

/** Numbers from 0 to 1 that follow from i alone. */
function noise(i: number): number {
  const x = Math.sin(12.9898 * i + 78.233) * 43758.5453
  return x - Math.floor(x)
}

/** Item i: bars of its class, lying, standing or crossed, and a little noise. */
export function item(i: number): TrainingItem {
  const label = i % 3
  const image = Float32Array.from({ length: pixels }, (_, at) => {
    const [row, column] = [Math.floor(at / 8), at % 8]
    const bar = [row % 4 < 2, column % 4 < 2, (row + column) % 4 < 2][label]
    return (bar ? 0.8 : -0.8) + 0.2 * (noise(64 * i + at) - 0.5)
  })
  return { image, label }
}

/** Items without end, from `position` on. */
export function* endless(position: number): Generator<TrainingItem> {
  for (let i = position; ; i++) yield item(i)
}

/** So many of them. */
export function some(n: number): TrainingItem[] {
  return Array.from({ length: n }, (_, i) => item(i))
}

/** The same as a folder of idx files, in bytes. */
export function idxFolder(n: number): string {
  const folder = temporaryFolder()
  const write = (name: string, shape: number[], bytes: number[]) => {
    const header = Buffer.alloc(4 + 4 * shape.length)
    header[2] = 8 // unsigned bytes
    header[3] = shape.length
    for (const [i, size] of shape.entries()) header.writeUInt32BE(size, 4 + 4 * i)
    writeFileSync(path.join(folder, name), Buffer.concat([header, Buffer.from(bytes)]))
  }
  const items = some(n)
  const bytes = items.flatMap(({ image }) =>
    Array.from(image as Float32Array, (x) => Math.round(127.5 * (x + 1))),
  )
  write('train-images-idx3-ubyte', [n, 8, 8], bytes)
  write(
    'train-labels-idx1-ubyte',
    [n],
    items.map(({ label }) => label as number),
  )
  return folder
}

/** Rows `first` to `first + n` as `trainer.step` takes them. */
export function rows(first: number, n: number) {
  const items = Array.from({ length: n }, (_, i) => item(first + i))
  const data = new Float32Array(n * pixels)
  for (const [i, { image }] of items.entries()) data.set(image as Float32Array, i * pixels)
  return { x: { data, shape: [n, 1, 8, 8] }, y: items.map(({ label }) => label) }
}

export function tinyModel(): Promise<DiT> {
  return DiT.create(tiny, { precision: 'fp32', threads: 1, seed: 1 })
}

/** What makes tests quick and repeatable. */
export const quick = {
  batchSize: 4,
  globalBatch: 8,
  lr: 1e-3,
  emaDecay: 0.9,
  seed: 7,
} as const satisfies TrainOptions

/** Trains a new tiny model and closes it; all events. */
export async function trainTiny(
  options: TrainOptions,
  data: Parameters<DiT['train']>[0] = endless,
): Promise<TrainEvent[]> {
  await using dit = await tinyModel()
  return await collect(dit.train(data, { ...quick, ...options }))
}

export async function collect<T>(events: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const event of events) all.push(event)
  return all
}

export function ofType<T extends TrainEvent['type']>(events: readonly TrainEvent[], type: T) {
  return events.filter((event): event is Extract<TrainEvent, { type: T }> => event.type === type)
}

/** Hashes of the files of a checkpoint with weights and moments. */
export function weights(checkpoint: string): Record<string, string> {
  const names = readdirSync(checkpoint).filter((name) => name.endsWith('.safetensors'))
  assert.is(names.length, 4)
  const hash = (name: string) =>
    createHash('sha256')
      .update(readFileSync(path.join(checkpoint, name)))
      .digest('hex')
  return Object.fromEntries(names.map((name) => [name, hash(name)]))
}
