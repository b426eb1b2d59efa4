// npm run demo: from a trained model to a picture.
//
// Samples the model that comes with the package, `DiT.load('demo')`: a small DiT that this project trained
// on Fashion-MNIST (demo/README.md). One column a class.
//
//   npm run demo -- [--rows=6] [--steps=25] [--guidance=2] [--seed=1] [--out=demo/out/fashion.png]

import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { parseArgs } from 'node:util'
import sharp from 'sharp'
import { Progress } from '../lib/cli/progress.js'
import { duration, scaled } from '../lib/cli/units.js'
import { integer, number } from '../lib/cli/values.js'
import { DiT, imageGrid, type RawImage } from '../lib/index.js'
import { packageRoot } from '../lib/root.cjs'

/** Each pixel becomes a square of so many: 32×32 pixels are too small to see. */
const enlargement = 3

const { values } = parseArgs({
  options: {
    rows: { type: 'string', default: '6' },
    steps: { type: 'string', default: '25' },
    guidance: { type: 'string', default: '2' },
    seed: { type: 'string', default: '1' },
    out: { type: 'string', default: path.join(packageRoot, 'demo/out/fashion.png') },
  },
})
const rows = integer(1, 100)(values.rows)
const steps = integer(1, 1000)(values.steps)
const guidance = number(values.guidance)
const seed = integer(0)(values.seed)
const out = path.resolve(values.out)

const progress = new Progress()
const begin = performance.now()
// One thread: work for two, divided as finely as in a model this small, is mostly waiting.
await using dit = await DiT.load('demo', { threads: 1, onProgress: progress.load })
progress.end()
const loaded = performance.now()
const { depth, hidden, numClasses, latentSize } = dit.config
console.log(`model    ${path.relative(process.cwd(), dit.source.description)}`)
console.log(
  `         depth ${depth}, hidden ${hidden}, ${latentSize.join('×')} pixels, ${numClasses} classes, ` +
    `${scaled(dit.memory().weights, 'B')} of weights`,
)
console.log(`device   ${dit.device}, ${dit.precision}`)

const classes = Object.values(dit.classNames)
const labels = Array.from({ length: rows }, () => classes).flat()
const images: RawImage[] = await dit.sample(labels, {
  sampler: 'dpm++',
  steps,
  clip: true,
  guidance,
  seed,
  onProgress: (event) => {
    if (event.type === 'progress') progress.update('sampling', 'steps', event.step, event.steps)
  },
})
progress.end()
const sampled = performance.now()

const grid = await imageGrid(images, { columns: classes.length })
await mkdir(path.dirname(out), { recursive: true })
await sharp(grid.data, { raw: { width: grid.width, height: grid.height, channels: 1 } })
  .resize(grid.width * enlargement, grid.height * enlargement, { kernel: 'nearest' })
  .toColourspace('b-w')
  .png()
  .toFile(out)

const seconds = (sampled - loaded) / 1000
console.log(
  `sampled  ${images.length} images, DPM-Solver++, ${steps} steps, guidance ${guidance}, clipped, seed ${seed}`,
)
console.log(`columns  ${classes.join(', ')}`)
console.log(
  `time     load ${duration((loaded - begin) / 1000)}, sample ${duration(seconds)} ` +
    `(${(images.length / seconds).toPrecision(3)} images/s)`,
)
console.log(`picture  ${out}`)
