// A sampler of one's own around dit.denoise: Heun's method on the probability-flow ODE (Karras et al. 2022,
// algorithm 1, without churn). node examples/solver.mjs
//
// With noise level s = sqrt((1 - a) / a), a = alpha-bar of a timestep, and z = x / sqrt(a), the ODE is
// dz/ds = e, the noise that the model predicts. Heun's step: go along e, look again there, take the mean.
import { DiT, RawImage } from 'dit-native'

const dit = await DiT.load('demo')
const steps = 12
const label = 'Sneaker'
const [height, width] = dit.config.latentSize
const { channels } = dit.config

// Noise levels of the model's own timesteps, of its (linear) schedule.
const { steps: T, betaStart, betaEnd } = dit.schedule
const levels = [] // by timestep
for (let t = 0, a = 1; t < T; t++) {
  a *= 1 - (betaStart + ((betaEnd - betaStart) * t) / (T - 1))
  levels.push(Math.sqrt((1 - a) / a))
}

/** The timestep, perhaps between two, that has a noise level. */
function timestepOf(level) {
  const above = levels.findIndex((value) => value >= level)
  if (above <= 0) return above === 0 ? 0 : T - 1
  const [low, high] = [levels[above - 1], levels[above]]
  return above - 1 + (level - low) / (high - low)
}

/** The predicted noise. The model takes x = z * sqrt(a), and a = 1 / (1 + s²). */
async function predict(z, level) {
  const x = {
    data: z.map((value) => value / Math.sqrt(1 + level ** 2)),
    shape: [1, channels, height, width],
  }
  const { data } = await dit.denoise({ x, t: timestepOf(level), y: label, guidance: 2 })
  return data.subarray(0, z.length) // what follows, in models that learned it, is the variance
}

// From the highest level down, closer together towards the end (equation 5, rho = 7).
const [top, bottom] = [levels.at(-1) ** (1 / 7), levels[0] ** (1 / 7)]
const path = Array.from(
  { length: steps },
  (_, i) => (top + (i / (steps - 1)) * (bottom - top)) ** 7,
)
path.push(0)

const noise = gaussian(channels * height * width, 1)
let z = noise.map((value) => value * Math.sqrt(1 + path[0] ** 2))
for (let i = 0; i < steps; i++) {
  const [from, to] = [path[i], path[i + 1]]
  const slope = await predict(z, from)
  const there = z.map((value, at) => value + (to - from) * slope[at])
  const second = to > 0 ? await predict(there, to) : slope
  z = z.map((value, at) => value + ((to - from) * (slope[at] + second[at])) / 2)
}

// At level 0, z is the image itself, from -1 to 1. A model of latents needs dit.decode({ data: z, shape }).
const data = Uint8Array.from(z, (value) =>
  Math.min(255, Math.max(0, Math.round(127.5 * (value + 1)))),
)
await new RawImage({ data, width, height, channels }).toFile('heun.png')
console.log(`heun.png: ${steps} steps of Heun's method, ${2 * steps - 1} evaluations`)

// DDIM follows the same ODE, by Euler's method: with many steps it ends at the same image.
const [other] = await dit.sample(label, {
  sampler: 'ddim',
  steps: 50,
  guidance: 2,
  noise: { data: noise, shape: [1, channels, height, width] },
})
await other.toFile('ddim.png')
const difference =
  data.reduce((sum, value, i) => sum + Math.abs(value - other.data[i]), 0) / data.length
console.log(`ddim.png: 50 steps of DDIM; the mean difference is ${difference.toFixed(2)} of 255`)
await dit.close()

/** Normal numbers of a seed: mulberry32, then Box and Muller's transformation. */
function gaussian(count, seed) {
  let state = seed
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return Float32Array.from({ length: count }, () => {
    return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform())
  })
}
