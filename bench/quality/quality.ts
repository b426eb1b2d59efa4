// npm run quality -- [--model=demo] [--n=1000] [--sampler=dpm++] [--steps=25] [--guidance=2] [--seed=1]
//                    [--no-clip] [--batch=100] [--threads=1] [--data=folder] [--cache=folder] [--out=folder]
//
// How good a model of Fashion-MNIST is. A small classifier, trained on the same data, says of n samples,
// as many of each class, whether they look like their classes; and how far its features of them lie
// from those of the real test images: the Fréchet distance in the classifier's features. Prints a
// table; writes quality.json and quality.png, ten samples of each class in a column, into --out.
//
// All shoes of the data point to the left. A model trained with horizontal flips makes mirrored ones, and
// they count as wrong: of the real test images mirrored, the classifier recognises no ankle boot.
//
// The data is the Debian package dataset-fashion-mnist (MIT licence). The first run trains the
// classifier, for about 5 minutes on one thread, and keeps it in --cache.

import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { Progress } from '../../lib/cli/progress.js'
import { columns, duration } from '../../lib/cli/units.js'
import { integer, number } from '../../lib/cli/values.js'
import { DiT, imageGrid, type RawImage, type SampleOptions } from '../../lib/index.js'
import { packageRoot } from '../../lib/root.cjs'
import { classes, defaultTraining, trainedClassifier } from './classifier.js'
import { checkShape, debianFolder, enlarge, readFashion } from './images.js'
import { labelsOf, measure, type Quality } from './measure.js'

const classNames =
  'T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot'.split(',')
const gridRows = 10
const gridSide = 64 // pixels of an image in the grid

type Settings = Required<Pick<SampleOptions, 'sampler' | 'steps' | 'guidance' | 'clip'>> & {
  seed: number
}

function readOptions() {
  const { values } = parseArgs({
    options: {
      model: { type: 'string', default: 'demo' },
      n: { type: 'string', default: '1000' },
      sampler: { type: 'string', default: 'dpm++' },
      steps: { type: 'string', default: '25' },
      guidance: { type: 'string', default: '2' },
      seed: { type: 'string', default: '1' },
      'no-clip': { type: 'boolean', default: false },
      batch: { type: 'string', default: '100' },
      threads: { type: 'string', default: '1' },
      data: { type: 'string', default: debianFolder },
      cache: { type: 'string', default: path.join(packageRoot, 'bench/.cache') },
      out: { type: 'string', default: path.join(packageRoot, 'demo/out') },
    },
  })
  const settings: Settings = {
    sampler: values.sampler as Settings['sampler'], // checked where it is used
    steps: integer(1, 1000)(values.steps),
    guidance: number(values.guidance),
    clip: !values['no-clip'],
    seed: integer(0)(values.seed),
  }
  const { model, data, cache, out } = values
  const batch = integer(1)(values.batch)
  const threads = integer(0)(values.threads)
  return {
    model,
    labels: labelsOf(integer(1)(values.n)),
    settings,
    batch,
    threads,
    data,
    cache,
    out,
  }
}

/** Throws, before the sampling, for a model whose samples cannot be judged. */
function checkModel({ config, vae }: DiT): void {
  const [height, width] = config.latentSize
  if (vae) throw new Error('Expected a model of pixels, this has a VAE')
  checkShape({ width, height, channels: config.channels })
  if (config.numClasses !== classes) {
    throw new Error(`Expected a model of ${classes} classes, this has ${config.numClasses}`)
  }
}

/** One image per label. The images do not depend on the size of the batches. */
async function sampleAll(
  dit: DiT,
  labels: readonly number[],
  { seed, ...settings }: Settings,
  batch: number,
  progress: Progress,
): Promise<RawImage[]> {
  const images: RawImage[] = []
  while (images.length < labels.length) {
    const begin = images.length
    const some = labels.slice(begin, begin + batch)
    images.push(...(await dit.sample(some, { ...settings, seed: seed + begin })))
    progress.update('sampling', 'images', images.length, labels.length)
  }
  return images
}

const percent = (fraction: number) => `${(100 * fraction).toFixed(1)} %`

function table(quality: Quality): string {
  const { confusion, accuracyPerClass, frechetDistanceInClassifierFeatures: distance } = quality
  const width = Math.max(...classNames.map((name) => name.length))
  const cells = (row: readonly (number | string)[]) =>
    row.map((cell) => String(cell).padStart(5)).join('')
  const heading = `${'wanted \\ seen'.padEnd(width)}${cells([...classNames.keys()])}  accuracy`
  const rows = confusion.map((row, i) => {
    const name = `${i} ${classNames[i]}`.padEnd(width + 2)
    return `${name}${cells(row)}  ${percent(accuracyPerClass[i] as number)}`
  })
  const figures = columns([
    ['accuracy on the real test images', percent(quality.realAccuracy)],
    ["the same, at the model's size", percent(quality.realAccuracyAtModelSize)],
    [`accuracy on ${quality.n} samples`, percent(quality.accuracy)],
    ['ratio of the last two', percent(quality.accuracyRatio)],
    ["Fréchet distance in the classifier's features, samples", distance.samples.toFixed(3)],
    ['the same, as many real training images', distance.realTrainingImages.toFixed(3)],
  ])
  return [heading, ...rows, '', figures].join('\n')
}

async function main(): Promise<void> {
  const { model, labels, settings, batch, threads, data, cache, out } = readOptions()
  const real = {
    train: await readFashion(data, 'train'),
    test: await readFashion(data, 't10k'),
  }
  const progress = new Progress()
  const network = trainedClassifier(cache, real.train, defaultTraining, ({ step, steps }) =>
    progress.update('training the classifier', 'steps', step, steps),
  )
  progress.end()

  await using dit = await DiT.load(model, { threads, onProgress: progress.load })
  progress.end()
  checkModel(dit)
  const begin = performance.now()
  const samples = await sampleAll(dit, labels, settings, batch, progress)
  progress.end()
  const sampleSeconds = (performance.now() - begin) / 1000
  const quality = measure(network, samples, real)

  await mkdir(out, { recursive: true })
  const [json, picture] = ['quality.json', 'quality.png'].map((name) => path.join(out, name)) as [
    string,
    string,
  ]
  const shown = samples.slice(0, gridRows * classes)
  const squares = shown.map((image) => enlarge(image, Math.floor(gridSide / image.width)))
  await (await imageGrid(squares, { columns: classes })).toFile(picture)
  const size = samples[0]?.width
  const record = {
    model,
    size,
    ...settings,
    classifier: defaultTraining,
    ...quality,
    sampleSeconds,
  }
  await writeFile(json, `${JSON.stringify(record, null, 2)}\n`)

  console.log(`model    ${path.relative(process.cwd(), dit.source.description)}`)
  console.log(
    `samples  ${settings.sampler}, ${settings.steps} steps, guidance ${settings.guidance}, ` +
      `${settings.clip ? 'clipped' : 'not clipped'}, seed ${settings.seed}; ${duration(sampleSeconds)}`,
  )
  console.log(`\n${table(quality)}\n`)
  console.log(`figures  ${json}`)
  console.log(`picture  ${picture}`)
}

main().catch((error: Error) => {
  console.error(`quality: ${error.message}`)
  process.exitCode = 1
})
