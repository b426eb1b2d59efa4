// node node_path.cjs <package> <fixtures> <device> <png>
//
// The whole way in Node, with the package as it would be installed: load, sample, decode, write a PNG;
// the same seed gives the same bits in whatever company; training repeats bit by bit; the result is
// the CPU's. Prints a line for each check, last a summary as JSON.
const { readFileSync } = require('node:fs')
const path = require('node:path')

const [packageFolder, fixtures, device, picture] = process.argv.slice(2)
const { DiT } = require(packageFolder)
const pipeline = path.join(fixtures, 'diffusers_pipeline')

const kMixes = 200 // batches put together at random
const kSeeds = 12 // that they are put together from
const kTrainings = 10

const failures = []
const notes = []
let passed = 0

function check(name, holds, detail = '') {
  if (holds) passed++
  else failures.push(`${name}${detail ? `: ${detail}` : ''}`)
  console.log(`${holds ? 'ok  ' : 'FAIL'} ${name}${detail ? `: ${detail}` : ''}`)
}

async function part(name, work) {
  const begin = performance.now()
  try {
    await work()
  } catch (error) {
    check(name, false, `${error.code ?? error.name}: ${error.message}`)
  }
  console.log(`     ${name}: ${((performance.now() - begin) / 1000).toFixed(1)} s`)
}

const bytesOf = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength)
const sameBits = (a, b) => bytesOf(a).equals(bytesOf(b))

function relativeL2(got, want) {
  let [difference, norm] = [0, 0]
  for (const [i, value] of want.entries()) {
    difference += (got[i] - value) ** 2
    norm += value ** 2
  }
  return Math.sqrt(difference / norm)
}

/** Whole numbers below n: the same in every run. */
function numbers(seed) {
  let state = BigInt(seed)
  return (n) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) % 2n ** 64n
    return Number(state >> 33n) % n
  }
}

// ---- the parts ----

async function loadToPng(dit) {
  const [image] = await dit.sample([3], { steps: 8, seed: 5 })
  await image.toFile(picture)
  const png = readFileSync(picture)
  check('a PNG was written', png.toString('latin1', 1, 4) === 'PNG', `${png.length} bytes`)
  const size = [png.readUInt32BE(16), png.readUInt32BE(20)]
  check('of the right size', size[0] === image.width && size[1] === image.height, size.join('×'))
  check('the picture is not of one colour', new Set(image.data).size > 10)
}

/** How image `seed` is sampled: its label, and one of three ways. */
const wayOf = (seed) =>
  [
    { sampler: 'dpm++', steps: 5 },
    { sampler: 'ddim', steps: 4, eta: 0.5 },
    { sampler: 'ddpm', steps: 3, guidance: 1 },
  ][seed % 3]

async function inAnyCompany(dit, precision) {
  const sample = (label, way, seeds) =>
    dit.sample(label, { ...way, seeds, output: 'latent' }).then(({ data }) => data)
  const alone = []
  for (let seed = 0; seed < kSeeds; seed++) {
    alone.push(await sample([seed % 5], wayOf(seed), [seed]))
  }
  check(
    `${precision}: every seed has latents of its own`,
    new Set(alone.map(String)).size === kSeeds,
  )
  const random = numbers(7)
  let different = 0
  for (let mix = 0; mix < kMixes; mix++) {
    // One to three calls at once, each with images of one way.
    const calls = Array.from({ length: 1 + random(3) }, () => {
      const kind = random(3)
      return Array.from({ length: 1 + random(4) }, () => kind + 3 * random(kSeeds / 3))
    })
    const results = await Promise.all(
      calls.map((seeds) =>
        sample(
          seeds.map((seed) => seed % 5),
          wayOf(seeds[0]),
          seeds,
        ),
      ),
    )
    for (const [i, seeds] of calls.entries()) {
      const size = results[i].length / seeds.length
      for (const [k, seed] of seeds.entries()) {
        if (!sameBits(results[i].subarray(k * size, (k + 1) * size), alone[seed])) different++
      }
    }
  }
  check(
    `${precision}: ${kMixes} mixes give the bits of lone runs`,
    different === 0,
    `${different} differ`,
  )
}

async function trainsAgain() {
  const runs = []
  for (let run = 0; run < kTrainings; run++) {
    const config = { depth: 2, hidden: 96, heads: 4, latentSize: 8, channels: 4, numClasses: 5 }
    const dit = await DiT.create(config, { device, seed: 1 })
    const trainer = await dit.trainer({ batchSize: 4, globalBatch: 8, lr: 1e-3, seed: 3 })
    const random = numbers(11)
    const metrics = []
    for (let step = 0; step < 4; step++) {
      const data = Float32Array.from({ length: 8 * 256 }, () => random(2001) / 1000 - 1)
      const y = Array.from({ length: 8 }, () => random(5))
      const { loss, gradNorm } = await trainer.step({ x: { data, shape: [8, 4, 8, 8] }, y })
      metrics.push(loss, gradNorm)
    }
    await trainer.close()
    const latents = await dit.sample([1, 2], { steps: 3, seed: 1, output: 'latent' })
    await dit.close()
    runs.push(Float64Array.of(...metrics, ...latents.data))
  }
  const finite = runs[0].every(Number.isFinite)
  const equal = runs.every((run) => sameBits(run, runs[0]))
  check(`${kTrainings} trainings give the same bits`, finite && equal, `loss ${runs[0][6]}`)
}

async function likeTheCpu() {
  const options = { steps: 6, seed: 9, output: 'latent' }
  const results = {}
  for (const [name, where, precision] of [
    ['cpu', 'cpu', 'fp32'],
    ['fp32', device, 'fp32'],
    ['own', device, undefined],
  ]) {
    await withModel(await DiT.load(pipeline, { device: where, precision }), async (dit) => {
      const latents = await dit.sample([1, 4], options)
      const [image] = await dit.decode({ data: latents.data, shape: latents.shape })
      results[name] = { latents: latents.data, image: image.data, precision: dit.precision }
    })
  }
  const { cpu, fp32, own } = results
  const error = relativeL2(fp32.latents, cpu.latents)
  // Six steps of a random network, fp32 on both sides.
  check('fp32 latents are those of the CPU', error < 1e-3, `rel L2 ${error.toExponential(1)}`)
  const off = Math.max(...fp32.image.map((value, i) => Math.abs(value - cpu.image[i])))
  check('fp32 pixels are those of the CPU', off <= 2, `largest difference ${off}`)
  const low = relativeL2(own.latents, cpu.latents)
  check(`${own.precision} latents are near the CPU's`, low < 0.15, `rel L2 ${low.toExponential(1)}`)
  notes.push(
    `fp32 against the CPU ${error.toExponential(1)}, ${own.precision} ${low.toExponential(1)}`,
  )
}

async function withModel(dit, work) {
  try {
    await work(dit)
  } finally {
    await dit.close()
  }
}

/** The emulator is for C++ tests: a package that does not know it by name cannot be run on it. */
async function isKnown() {
  if (device !== 'cuda:emulated') return true
  try {
    await withModel(await DiT.load(pipeline, { device }), async () => {})
  } catch (error) {
    return error.code !== 'ERR_DIT_OPTION'
  }
  return true
}

async function main() {
  if (!(await isKnown())) {
    notes.push(`not run: the package has no device ${device}`)
    return
  }
  const devices = await DiT.devices()
  console.log(JSON.stringify(devices))
  await part('load to PNG', async () => {
    await withModel(await DiT.load(pipeline, { device }), loadToPng)
  })
  for (const precision of ['fp32', 'bf16']) {
    await part(`company, ${precision}`, async () => {
      await withModel(await DiT.load(pipeline, { device, precision }), (dit) =>
        inAnyCompany(dit, precision),
      )
    })
  }
  await part('training', trainsAgain)
  await part('beside the CPU', likeTheCpu)
}

main().then(
  () => {
    console.log(JSON.stringify({ passed, failures, note: notes.join('; ') }))
    process.exitCode = failures.length === 0 ? 0 : 1
  },
  (error) => {
    failures.push(error.stack)
    console.log(JSON.stringify({ passed, failures, note: '' }))
    process.exitCode = 1
  },
)
