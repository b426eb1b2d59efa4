// What is asked for: as a value, as words, as the part of the address behind #, as a request.

/** @import { Model } from './api.js' */

/**
 * @typedef {object} Settings
 * @property {string} model
 * @property {number[]} classes
 * @property {number} per Images of each class.
 * @property {string} sampler
 * @property {number} steps
 * @property {number} guidance
 * @property {number} seed
 * @property {number} eta
 * @property {[number, number]} interval
 */

/** @type {Record<string, string>} */
const samplerNames = { 'dpm++': 'DPM++', ddim: 'DDIM', ddpm: 'DDPM' }

/** @param {string} sampler */
export const samplerName = (sampler) => samplerNames[sampler] ?? sampler

export const maxSeed = 999_999_999_999_999

/** Nine digits at most, so that it can be read out and typed. */
export function randomSeed() {
  const [number = 0] = crypto.getRandomValues(new Uint32Array(1))
  return number % 1_000_000_000
}

/**
 * What the page begins with: classes from all over the list.
 *
 * @param {Model} model
 * @returns {Settings}
 */
export function defaultSettings({ id, dit }) {
  const count = Math.min(4, dit.numClasses, dit.limits.images)
  const classes = Array.from({ length: count }, (_, i) =>
    Math.floor(((i + 0.5) * dit.numClasses) / count),
  )
  const { sampler, steps, guidance } = dit.defaults
  return {
    model: id,
    classes,
    per: Math.max(1, Math.min(4, Math.floor(dit.limits.images / count))),
    sampler,
    steps,
    guidance,
    seed: randomSeed(),
    eta: 0,
    interval: [0, 1],
  }
}

/**
 * Why these cannot be asked for; undefined when they can.
 *
 * @param {Settings} settings
 * @param {Model} model
 * @returns {{ id: string, message: string } | undefined} The field, and what is wrong with it.
 */
export function problemOf(settings, { dit }) {
  const { classes, per, steps, guidance, seed, eta, interval } = settings
  const { images, steps: maxSteps } = dit.limits
  const isCount = (/** @type {number} */ value, /** @type {number} */ max) =>
    Number.isInteger(value) && value >= 1 && value <= max
  const isShare = (/** @type {number} */ value) => value >= 0 && value <= 1
  if (classes.length === 0) return { id: 'class-search', message: 'Choose a class' }
  if (!isCount(per, images)) return { id: 'per', message: `Images of each: 1 to ${images}` }
  if (classes.length * per > images) {
    const message = `${classes.length * per} images; this server makes ${images} at a time`
    return { id: 'per', message }
  }
  if (!isCount(steps, maxSteps)) return { id: 'steps', message: `Steps: 1 to ${maxSteps}` }
  if (!(guidance >= 0 && guidance <= 30)) return { id: 'guidance', message: 'Guidance: 0 to 30' }
  if (!(Number.isInteger(seed) && seed >= 0 && seed <= maxSeed)) {
    return { id: 'seed', message: 'Seed: up to 15 digits' }
  }
  if (!isShare(eta)) return { id: 'eta', message: 'Eta: 0 to 1' }
  if (!isShare(interval[0]) || !isShare(interval[1]) || interval[0] > interval[1]) {
    return { id: 'interval-from', message: 'Guided from, to: 0 to 1, the smaller one first' }
  }
  return undefined
}

/**
 * Label and seed of each image: the images of a class have seeds one after another, the same ones for
 * every class, so that a column of the sheet begins with the same noise.
 *
 * @param {Settings} settings
 */
export function imagesOf({ classes, per, seed }) {
  return classes.flatMap((label) =>
    Array.from({ length: per }, (_, i) => ({ label, seed: seed + i })),
  )
}

/** Fifty pictures of each image's way, or a few more. @param {number} steps */
export const previewEvery = (steps) => Math.max(1, Math.floor(steps / 50))

/**
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 */
export function toRequest(settings) {
  const { model, sampler, steps, guidance, eta, interval } = settings
  const images = imagesOf(settings)
  const isWhole = interval[0] === 0 && interval[1] === 1
  return {
    model,
    labels: images.map(({ label }) => label),
    seeds: images.map(({ seed }) => seed),
    sampler,
    steps,
    guidance,
    ...(sampler === 'ddim' && eta > 0 && { eta }),
    ...(!isWhole && { guidanceInterval: interval }),
    preview: previewEvery(steps),
  }
}

/**
 * What tells runs apart, by name.
 *
 * @param {Settings} settings
 * @returns {Map<string, string>}
 */
export function facts({ sampler, steps, guidance, seed, eta, interval }) {
  const all = new Map([
    ['sampler', samplerName(sampler)],
    ['steps', String(steps)],
    ['guidance', String(guidance)],
    ['seed', String(seed)],
  ])
  if (sampler === 'ddim' && eta > 0) all.set('eta', String(eta))
  if (interval[0] !== 0 || interval[1] !== 1) all.set('guided', `${interval[0]}–${interval[1]}`)
  return all
}

/** @param {Settings} settings */
export function toHash(settings) {
  const { model, classes, per, sampler, steps, guidance, seed, eta, interval } = settings
  const entries = {
    model,
    classes: classes.join('.'),
    per,
    sampler,
    steps,
    guidance,
    seed,
    ...(eta > 0 && { eta }),
    ...((interval[0] !== 0 || interval[1] !== 1) && { guided: interval.join('-') }),
  }
  const pairs = Object.entries(entries).map(([name, value]) => [name, String(value)])
  return `#${new URLSearchParams(pairs)}`
}

/**
 * Settings from the address; what is missing or no setting of this model is left as it is.
 *
 * @param {string} hash
 * @param {Settings} fallback
 * @param {Model} model
 * @returns {Settings}
 */
export function fromHash(hash, fallback, { dit }) {
  const entries = new URLSearchParams(hash.slice(1))
  const number = (/** @type {string} */ name, /** @type {number} */ otherwise) => {
    const text = entries.get(name) ?? ''
    return text !== '' && Number.isFinite(Number(text)) ? Number(text) : otherwise
  }
  const classes = (entries.get('classes') ?? '').split('.').filter((text) => /^\d{1,9}$/.test(text))
  const known = [...new Set(classes.map(Number))].filter((id) => id < dit.numClasses)
  const sampler = entries.get('sampler') ?? ''
  const [from = Number.NaN, to = Number.NaN] = (entries.get('guided') ?? '').split('-').map(Number)
  /** @type {Settings} */
  const read = {
    ...fallback,
    classes: known.length > 0 ? known : fallback.classes,
    per: number('per', fallback.per),
    sampler: dit.samplers.includes(sampler) ? sampler : fallback.sampler,
    steps: number('steps', fallback.steps),
    guidance: number('guidance', fallback.guidance),
    seed: number('seed', fallback.seed),
    eta: number('eta', fallback.eta),
    interval: from <= to ? [from, to] : fallback.interval,
  }
  return read
}
