// node soak.cjs <package> <device> <model> <seconds>
//
// Samples, with several calls under way at once, and trains another model beside it, until the time is
// over. Every result is checked: finite, and the same bits as the first time. The last line is JSON.
const [packageFolder, device, model, seconds] = process.argv.slice(2)
const { DiT } = require(packageFolder)

const config =
  model === 'tiny'
    ? { depth: 2, hidden: 96, heads: 4, latentSize: 8, channels: 4, numClasses: 5 }
    : model
const kBatch = model === 'tiny' ? 4 : 32
const kCalls = 3 // under way at once
const end = performance.now() + 1000 * Number(seconds)

const errors = []
const work = { images: 0, steps: 0, rounds: 0 }

/** Uniform numbers from -1 to 1 that follow from the seed. */
function values(count, seed) {
  let state = seed >>> 0
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 31 - 1
  })
}

async function sampling(dit) {
  const first = new Map()
  while (performance.now() < end && errors.length === 0) {
    const calls = Array.from({ length: kCalls }, async (_, i) => {
      const labels = Array.from({ length: 1 + ((work.rounds + i) % 8) }, (_, k) => k % 5)
      const seed = (work.rounds + i) % 16
      const options = { seed, steps: 6 + 2 * i, sampler: ['dpm++', 'ddim', 'ddpm'][i] }
      const { data } = await dit.sample(labels, { ...options, output: 'latent' })
      work.images += labels.length
      // The first image of a call depends on its seed and its way alone.
      const image = data.slice(0, data.length / labels.length)
      const key = `${i} ${seed}`
      if (!image.every(Number.isFinite)) errors.push(`sampling ${key}: not finite`)
      const before = first.get(key)
      if (before === undefined) first.set(key, image)
      else if (!image.every((value, at) => value === before[at])) {
        errors.push(`sampling ${key}: other bits than the first time`)
      }
    })
    await Promise.all(calls)
    work.rounds++
  }
}

async function training(dit) {
  const trainer = await dit.trainer({ batchSize: kBatch, globalBatch: kBatch, lr: 1e-4, seed: 1 })
  const { channels, latentSize } = dit.config
  const [height, width] = [latentSize].flat().concat([latentSize].flat())
  const shape = [kBatch, channels, height, width]
  const x = { data: values(kBatch * channels * height * width, 1), shape }
  const y = Array.from({ length: kBatch }, (_, i) => i % 5)
  while (performance.now() < end && errors.length === 0) {
    const { loss, outcome } = await trainer.step({ x, y })
    work.steps++
    if (!Number.isFinite(loss)) errors.push(`training step ${work.steps}: ${outcome}, loss ${loss}`)
  }
  await trainer.close()
}

async function main() {
  const [sampled, trained] = [
    await DiT.create(config, { device, seed: 1 }),
    await DiT.create(config, { device, seed: 2 }),
  ]
  console.log(`${sampled.device}, ${sampled.precision}, ${model}`)
  await Promise.all([sampling(sampled), training(trained)])
  await Promise.all([sampled.close(), trained.close()])
}

main()
  .catch((error) => errors.push(error.stack))
  .then(() => {
    console.log(JSON.stringify({ ...work, errors }))
    process.exitCode = errors.length === 0 ? 0 : 1
  })
