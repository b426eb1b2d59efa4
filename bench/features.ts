// node --import tsx bench/features.ts [--images=2000] [--size=256] [--steps=30] [--precision=fp32] [--threads=0]
//
// What it costs to run the VAE over a folder once (`dit features`), and what it saves: images/s of
// `extractFeatures` beside those of the VAE's encoder alone, then of training a small DiT from the
// features and from the JPEGs themselves. The JPEGs are generated, twice as long a side as the VAE is
// given; the VAE is the small one of test/fixtures/diffusers_pipeline (a factor of 2).

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import sharp from 'sharp'
import { Progress } from '../lib/cli/progress.js'
import { columns } from '../lib/cli/units.js'
import { integer } from '../lib/cli/values.js'
import { DiT, extractFeatures, type Precision, type StepEvent } from '../lib/index.js'
import { packageRoot } from '../lib/root.cjs'
import { Random } from './quality/random.js'

const classes = 10
const vae = path.join(packageRoot, 'test/fixtures/diffusers_pipeline')
const vaeFactor = 2
const batchSize = 32
/** Images of one call of the encoder, as `extractFeatures` encodes them. */
const encodedAtOnce = 16
/** Steps that are not counted: memory and caches are new. */
const warmUp = 5

const { values } = parseArgs({
  options: {
    images: { type: 'string', default: '2000' },
    size: { type: 'string', default: '256' },
    steps: { type: 'string', default: '30' },
    precision: { type: 'string', default: 'fp32' },
    threads: { type: 'string', default: '0' },
  },
})
const count = integer(classes)(values.images)
const size = integer(16)(values.size)
const steps = integer(1)(values.steps)
const threads = integer(0)(values.threads)
const place = { precision: values.precision as Precision, threads } // checked where it is used
const progress = new Progress()

/** Smooth noise with some grain: JPEGs of the usual size, a folder for each class. */
async function writeImages(folder: string): Promise<void> {
  const random = new Random(1)
  const side = 2 * size
  for (let i = 0; i < count; i++) {
    const within = path.join(folder, `class${i % classes}`)
    mkdirSync(within, { recursive: true })
    const coarse = Uint8Array.from({ length: 16 * 16 * 3 }, () => 256 * random.next())
    await sharp(coarse, { raw: { width: 16, height: 16, channels: 3 } })
      .resize(side, side, { kernel: 'cubic' })
      .jpeg({ quality: 90 })
      .toFile(path.join(within, `${i}.jpg`))
    progress.update('writing JPEGs', 'images', i + 1, count)
  }
  progress.end()
}

/** Images/s of the encoder alone, of images that are in memory. */
async function encodeAlone(): Promise<number> {
  await using dit = await DiT.load(vae, place)
  const random = new Random(2)
  const shape = [encodedAtOnce, 3, size, size]
  const data = new Float32Array(encodedAtOnce * 3 * size * size).map(() => random.next() - 0.5)
  await dit.encode({ data, shape })
  const rounds = Math.max(1, Math.round(count / 4 / encodedAtOnce))
  const begin = performance.now()
  for (let round = 0; round < rounds; round++) {
    await dit.encode({ data, shape })
    progress.update('encoding alone', 'images', (round + 1) * encodedAtOnce, rounds * encodedAtOnce)
  }
  progress.end()
  return (rounds * encodedAtOnce) / ((performance.now() - begin) / 1000)
}

async function extract(images: string, out: string): Promise<number> {
  const begin = performance.now()
  await extractFeatures(images, {
    ...place,
    vae,
    out,
    size,
    onProgress: (event) => {
      if (event.phase === 'encode') progress.update('features', 'images', event.done, event.total)
    },
  })
  progress.end()
  return count / ((performance.now() - begin) / 1000)
}

/** A small DiT: images/s after the first steps, and the share of the time that it waited for data. */
async function trainFrom(data: string): Promise<{ imagesPerSecond: number; waited: number }> {
  const side = size / vaeFactor
  const config = { depth: 4, hidden: 128, heads: 4, latentSize: side, patchSize: side / 8 }
  const size8 = { ...config, channels: 4, numClasses: classes }
  await using dit = await DiT.create(size8, { ...place, vae, seed: 1 })
  const counted: StepEvent[] = []
  for await (const event of dit.train(data, { batchSize, steps: warmUp + steps, seed: 1 })) {
    if (event.type !== 'step') continue
    progress.update(`training from ${path.basename(data)}`, 'steps', event.step, warmUp + steps)
    if (event.step > warmUp) counted.push(event)
  }
  progress.end()
  const sum = (of: (event: StepEvent) => number) => counted.reduce((all, one) => all + of(one), 0)
  const seconds = sum(({ secondsPerStep }) => secondsPerStep)
  return {
    imagesPerSecond: (batchSize * counted.length) / seconds,
    waited: sum(({ dataWait }) => dataWait) / seconds,
  }
}

async function main(): Promise<void> {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'dit-native-features-'))
  const [images, features] = ['images', 'features'].map((name) => path.join(folder, name)) as [
    string,
    string,
  ]
  const load = [os.loadavg()[0] as number]
  try {
    await writeImages(images)
    const alone = await encodeAlone()
    const extracted = await extract(images, features)
    const [fromFeatures, fromImages] = [await trainFrom(features), await trainFrom(images)]
    load.push(os.loadavg()[0] as number)
    const perSecond = (value: number) => `${value.toPrecision(3)} images/s`
    const percent = (value: number) => `${(100 * value).toFixed(1)} %`
    const training = ({ imagesPerSecond, waited }: typeof fromImages) =>
      `${perSecond(imagesPerSecond)}, ${percent(waited)} of the time waiting for data`
    console.log(
      columns([
        ['images', `${count} JPEGs of ${2 * size}×${2 * size}, cut to ${size}×${size}`],
        [
          'machine',
          `${os.availableParallelism()} cores, load ${load.map((x) => x.toFixed(1)).join(' to ')}`,
        ],
        ['precision', `${values.precision}, threads: ${threads || 'all'}`],
        ['VAE encode alone', perSecond(alone)],
        ['dit features', `${perSecond(extracted)}, ${percent(extracted / alone)} of that`],
        ['training from features', training(fromFeatures)],
        ['training from images', training(fromImages)],
      ]),
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

main().catch((error: Error) => {
  console.error(`features: ${error.stack}`)
  process.exitCode = 1
})
