// The measure of quality for models of Fashion-MNIST, bench/quality. The data is not needed here.

import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { classify, createClassifier, train } from '../bench/quality/classifier.js'
import { frechetDistance, type Gaussian, gaussianOf } from '../bench/quality/frechet.js'
import {
  atModelSize,
  enlarge,
  firstOfEach,
  fromModel,
  imageAt,
  type Labelled,
  side,
  toModel,
} from '../bench/quality/images.js'
import { addProduct, type Factor } from '../bench/quality/matrix.js'
import { labelsOf, measure } from '../bench/quality/measure.js'
import { createNetwork, lossAndGradient } from '../bench/quality/network.js'
import { Random } from '../bench/quality/random.js'
import { readSafetensors } from '../lib/formats/safetensors.js'
import { RawImage } from '../lib/index.js'
import { difference } from './helpers/expected.js'
import { fixture, temporaryFolder } from './helpers/files.js'
import { readPart } from './helpers/tensors.js'

const math = 'inception_fid/math.safetensors'

/** n numbers from -1 to 1. */
function numbers(n: number, seed: number): Float64Array {
  const random = new Random(seed)
  return Float64Array.from({ length: n }, () => 2 * random.next() - 1)
}

/** Images of ten classes, a bright square in another place for each, in noise. */
function squares(perClass: number, seed: number): Labelled {
  const random = new Random(seed)
  const labels = Uint8Array.from({ length: 10 * perClass }, (_, i) => i % 10)
  const pixels = new Uint8Array(labels.length * side ** 2)
  for (const [i, label] of labels.entries()) {
    const [left, top] = [2 + 5 * (label % 5), 4 + 12 * Math.floor(label / 5)]
    const image = imageAt(pixels, i)
    for (let j = 0; j < image.length; j++) {
      const [x, y] = [j % side, Math.floor(j / side)]
      const isInside = x >= left && x < left + 4 && y >= top && y < top + 8
      image[j] = (isInside ? 150 : 0) + 100 * random.next()
    }
  }
  return { pixels, labels }
}

const accuracy = (predicted: Uint8Array, labels: Uint8Array) =>
  predicted.filter((label, i) => label === labels[i]).length / labels.length

// ---- the Fréchet distance ----

async function reference() {
  const { tensors } = await readSafetensors(fixture(math))
  const manifest = JSON.parse(readFileSync(fixture('manifest.json'), 'utf8'))
  const read = (name: string): number[] => {
    const part = tensors.get(name)
    if (part === undefined) throw new Error(`${math} has no ${name}`)
    return readPart(part)
  }
  const activations = Float64Array.from(read('acts2'))
  return {
    read,
    tolerance: manifest[math].tensors as Record<string, { tol_rel: number; tol_rel_l2: number }>,
    fitted: [
      gaussianOf(Float64Array.from(read('acts1')), 64),
      gaussianOf(activations, 64),
      gaussianOf(activations.subarray(0, 64 * (read('few_rows')[0] as number)), 64),
    ] as [Gaussian, Gaussian, Gaussian],
  }
}

test('means and covariances are those of the reference', async () => {
  const { read, tolerance, fitted } = await reference()
  for (const [i, { mean, covariance }] of fitted.entries()) {
    const [mu, sigma] = [`mu${i + 1}`, `sigma${i + 1}`]
    const limits = [mu, sigma].map((name) => tolerance[name]?.tol_rel_l2 as number)
    assert.ok(difference(mean, read(mu)).relL2 <= (limits[0] as number), mu)
    assert.ok(difference(covariance.to1DArray(), read(sigma)).relL2 <= (limits[1] as number), sigma)
  }
})

test('the Fréchet distance is that of the reference, of few rows too', async () => {
  const { read, tolerance, fitted } = await reference()
  const [many, others, few] = fitted
  const cases = [
    ['fid', many, others],
    ['fid_few', many, few],
    ['fid_few_exact', many, few],
    ['fid_few_exact', few, many],
  ] as const
  for (const [name, a, b] of cases) {
    const [got, want] = [frechetDistance(a, b), read(name)[0] as number]
    const error = Math.abs(got / want - 1)
    assert.ok(error <= (tolerance[name]?.tol_rel as number), `${name}: ${got}, expected ${want}`)
  }
  const own = frechetDistance(many, many)
  assert.ok(own >= 0 && own < 1e-10, `of a distribution to itself: ${own}`)
  assert.throws(() => gaussianOf(new Float64Array(64), 64), /at least 2 rows/)
})

// ---- the network ----

test('products of odd sizes, of transposed factors too, are those of three loops', () => {
  const sizes = [
    [1, 1, 1],
    [3, 5, 2],
    [4, 2, 256],
    [7, 3, 517],
  ] as const
  for (const [m, n, k] of sizes) {
    const [a, b, start] = [numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3)]
    const factors: [Factor, Factor][] = [
      [
        { data: a, row: k, column: 1 },
        { data: b, row: n, column: 1 },
      ],
      [
        { data: a, row: 1, column: m },
        { data: b, row: 1, column: k },
      ],
    ]
    for (const [p, q] of factors) {
      const want = start.slice()
      for (let i = 0; i < m * n; i++) {
        const [row, column] = [Math.floor(i / n), i % n]
        for (let t = 0; t < k; t++) {
          const x = p.data[row * p.row + t * p.column] as number
          want[i] = (want[i] as number) + x * (q.data[t * q.row + column * q.column] as number)
        }
      }
      const got = start.slice()
      addProduct(got, p, q, [m, n, k])
      assert.ok(difference(got, want).maxAbs < 1e-12, `${m}, ${n}, ${k}`)
    }
  }
})

test('the gradient is that of finite differences', () => {
  const layers = [
    { kernel: 3, stride: 2, padding: 1, channels: 3 },
    { kernel: 2, stride: 1, padding: 0, channels: 5 },
    { kernel: 3, stride: 1, padding: 0, channels: 4 },
  ]
  const network = createNetwork({ size: 7, channels: 2 }, layers, 5)
  const { parameters } = network
  for (let i = 0; i < parameters.length; i++) if (parameters[i] === 0) parameters[i] = 0.01 // biases
  const n = 3
  const images = numbers(n * 7 * 7 * 2, 6)
  const labels = [0, 3, 1]
  const { loss, gradient } = lossAndGradient(network, images, labels, n)
  assert.ok(loss > 0.5 && loss < 5, `${loss}`)
  const step = 1e-6
  const slopes = parameters.map((value, i) => {
    const at = (moved: number) => {
      parameters[i] = moved
      return lossAndGradient(network, images, labels, n).loss
    }
    const slope = (at(value + step) - at(value - step)) / (2 * step)
    parameters[i] = value
    return slope
  })
  // Rounding of the loss, 1e-16, over the step.
  const { relL2 } = difference(gradient, slopes)
  assert.ok(relL2 < 1e-8, `${relL2}`)
})

test('the classifier learns, the same bits each time', () => {
  const data = squares(10, 1)
  const settings = { seed: 3, epochs: 5, batchSize: 10, learningRate: 2e-3 }
  const [first, second] = [createClassifier(3), createClassifier(3)]
  const losses: number[] = []
  train(first, data, settings, ({ step, steps, loss }) => {
    assert.is(steps, 50)
    assert.is(step, losses.push(loss))
  })
  train(second, data, settings)
  assert.equal(first.parameters, second.parameters)
  assert.ok((losses.at(-1) as number) < 0.2, losses.join(' '))
  const other = squares(3, 2)
  assert.is(accuracy(classify(first, other.pixels).predicted, other.labels), 1)
})

// ---- images ----

test('real images pass through the sizes of models', () => {
  const image = Uint8Array.from({ length: side ** 2 }, (_, i) => (i * 37) % 256)
  assert.equal(fromModel(toModel(image, 32)), image)

  const small = toModel(image, 16)
  const block = (x: number, y: number) =>
    Math.round(
      [0, 1, side, side + 1].reduce((sum, at) => sum + (image[y * side + x + at] as number), 0) / 4,
    )
  assert.is(small.data[0], 0) // the border
  assert.is(small.data[17], block(0, 0))
  assert.is(small.data[3 * 16 + 6], block(10, 4))
  const back = fromModel(small)
  assert.equal(
    [back[0], back[1], back[side], back[4 * side + 11]],
    [block(0, 0), block(0, 0), block(0, 0), block(10, 4)],
  )

  const colours = { data: Uint8Array.of(1, 2, 3, 4), width: 2, height: 1, channels: 2 }
  const larger = enlarge(colours, 2)
  assert.equal([...larger.data], [1, 2, 1, 2, 3, 4, 3, 4, 1, 2, 1, 2, 3, 4, 3, 4])
  assert.throws(
    () => fromModel({ data: new Uint8Array(64), width: 8, height: 8, channels: 1 }),
    /16×16 or 32×32 pixels, this makes 8×8/,
  )
})

test('of each class the first images are chosen', () => {
  const data = squares(3, 1)
  const { pixels, labels } = firstOfEach(data, 2)
  assert.equal([...labels], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9])
  assert.equal(imageAt(pixels, 3), imageAt(data.pixels, 11))
  assert.throws(() => firstOfEach(data, 4), /class 0 has only 3 images/)
})

test('samples are judged', () => {
  const [real, test] = [squares(10, 1), squares(5, 2)]
  const network = createClassifier(3)
  train(network, real, { seed: 3, epochs: 5, batchSize: 10, learningRate: 2e-3 })
  const like = (data: Labelled, label: (i: number) => number) =>
    labelsOf(20).map(
      (_, i) => new RawImage(toModel(imageAt(data.pixels, i), 32), { label: label(i) }),
    )

  const good = measure(
    network,
    like(real, (i) => i % 10),
    { train: real, test },
  )
  assert.equal([good.accuracy, good.realAccuracy, good.accuracyRatio], [1, 1, 1])
  assert.equal(good.accuracyPerClass, new Array(10).fill(1))
  const { samples, realTrainingImages } = good.frechetDistanceInClassifierFeatures
  assert.ok(samples > 0 && Math.abs(samples / realTrainingImages - 1) < 1e-9, 'the same images')

  // Every sample is of the class after the one that was asked for.
  const wrong = measure(
    network,
    like(real, (i) => (i + 9) % 10),
    { train: real, test },
  )
  assert.is(wrong.accuracy, 0)
  assert.equal(wrong.confusion[9], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0])

  // All of one class: far from the real ones, as labels alone do not show.
  const same = like(real, (i) => i % 10).map(
    ({ label }) => new RawImage(toModel(imageAt(real.pixels, 0), 32), { label: label as number }),
  )
  const collapsed = measure(network, same, { train: real, test })
  assert.is(collapsed.accuracy, 0.1)
  assert.ok(collapsed.frechetDistanceInClassifierFeatures.samples > 5 * samples)

  // Half the size: the real images that they are compared with lose as much.
  const small = atModelSize(test, 16)
  assert.is(small.pixels.length, test.pixels.length)
  const halved = labelsOf(20).map(
    (label, i) => new RawImage(toModel(imageAt(real.pixels, i), 16), { label }),
  )
  const half = measure(network, halved, { train: real, test })
  const atSize = accuracy(classify(network, small.pixels).predicted, test.labels)
  assert.equal([half.realAccuracy, half.realAccuracyAtModelSize], [1, atSize])

  assert.throws(() => labelsOf(15), /multiple of 10/)
  assert.throws(() => labelsOf(10), /at least 20/)
})

// ---- npm run quality ----

function writeIdx(folder: string, part: string, { pixels, labels }: Labelled, compress: boolean) {
  const write = (name: string, dimensions: number[], bytes: Uint8Array) => {
    const head = Buffer.alloc(4 + 4 * dimensions.length)
    head.writeUInt32BE(0x800 + dimensions.length)
    for (const [i, size] of dimensions.entries()) head.writeUInt32BE(size, 4 * (i + 1))
    const content = Buffer.concat([head, bytes])
    const file = path.join(folder, `${part}-${name}-ubyte`)
    writeFileSync(compress ? `${file}.gz` : file, compress ? gzipSync(content) : content)
  }
  write('images-idx3', [labels.length, side, side], pixels)
  write('labels-idx1', [labels.length], labels)
}

function quality(...args: string[]) {
  const script = fileURLToPath(new URL('../bench/quality/quality.ts', import.meta.url))
  return spawnSync(process.execPath, ['--import', import.meta.resolve('tsx'), script, ...args], {
    encoding: 'utf8',
  })
}

test('npm run quality trains once, then samples and reports', async () => {
  const folder = temporaryFolder()
  const [data, cache, out] = ['data', 'cache', 'out'].map((name) => path.join(folder, name)) as [
    string,
    string,
    string,
  ]
  mkdirSync(data)
  writeIdx(data, 'train', squares(20, 1), true)
  writeIdx(data, 't10k', squares(5, 2), false)
  const model = fixture('fashion_dit/fashion.pt')
  const args = [`--model=${model}`, '--n=20', '--steps=2', `--data=${data}`, `--cache=${cache}`]

  const first = quality(...args, `--out=${out}`)
  assert.is(first.status, 0, first.stderr)
  assert.match(
    first.stdout,
    /^Fréchet distance in the classifier's features, samples +\d+\.\d{3}$/m,
  )
  const [kept = '', ...rest] = readdirSync(cache)
  assert.match(kept, /^fashion-classifier-[0-9a-f]{16}\.f64$/)
  assert.is(rest.length, 0)
  const trained = statSync(path.join(cache, kept)).mtimeMs

  const record = JSON.parse(readFileSync(path.join(out, 'quality.json'), 'utf8'))
  assert.equal([record.n, record.size, record.sampler, record.steps], [20, 16, 'dpm++', 2])
  assert.is(record.confusion.flat().length, 100)
  const sum = (list: number[]) => list.reduce((a, b) => a + b, 0)
  for (const row of record.confusion) assert.is(sum(row), 2)
  const distance = record.frechetDistanceInClassifierFeatures
  assert.ok(distance.samples > distance.realTrainingImages, 'clothes are no squares')
  const { width, height } = await sharp(path.join(out, 'quality.png')).metadata()
  assert.equal([width, height], [10 * 64, 2 * 64])

  // Again, in batches of another size, with the classifier of before.
  const second = quality(...args, '--batch=7', `--out=${path.join(folder, 'again')}`)
  assert.is(second.status, 0, second.stderr)
  assert.is(statSync(path.join(cache, kept)).mtimeMs, trained)
  const again = JSON.parse(readFileSync(path.join(folder, 'again', 'quality.json'), 'utf8'))
  assert.equal({ ...again, sampleSeconds: 0 }, { ...record, sampleSeconds: 0 })
})

test('npm run quality says what is missing', () => {
  const { status, stderr } = quality(`--data=${temporaryFolder()}`)
  assert.is(status, 1)
  assert.match(stderr, /apt-get install dataset-fashion-mnist/)
})

test.run()
