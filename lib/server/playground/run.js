// One press of Generate: what was asked for, what has come of it, and how it ended.

import { ApiError, makeImages } from './api.js'
import { imagesOf, previewEvery, toRequest } from './settings.js'

/** @import { Model, ServerEvent } from './api.js' */
/** @import { Settings } from './settings.js' */

/**
 * @typedef {{ step: number, source: string }} Frame What an image looked like after a step; `source` is a data URL.
 *
 * @typedef {object} RunImage
 * @property {number} label
 * @property {string} name
 * @property {number} seed
 * @property {number} step Solver steps done.
 * @property {number} since Events of progress since its last preview.
 * @property {Frame[]} frames In the order of their steps.
 * @property {string | undefined} source The finished one.
 *
 * @typedef {'draft' | 'asking' | 'waiting' | 'running' | 'done' | 'cancelled' | 'failed'} RunState
 */

/** How often a busy server is asked again. */
const maxTries = 20
/** Where it does not say when, in seconds. */
const defaultWait = 2

export class Run extends EventTarget {
  /** @type {RunState} */
  state = 'draft'
  /** Solver steps of all images. */
  step = 0
  /** When a busy server is asked again; milliseconds since 1970. */
  retryAt = 0
  /** @type {ApiError | undefined} */
  error = undefined
  /** From the first answer to the last image. */
  seconds = 0
  #begin = 0
  #abort = new AbortController()

  /**
   * @param {Settings} settings
   * @param {Model} model
   * @param {(label: number) => string} nameOf
   */
  constructor(settings, model, nameOf) {
    super()
    this.settings = settings
    this.model = model
    /** @type {RunImage[]} */
    this.images = imagesOf(settings).map(({ label, seed }) => {
      return { label, name: nameOf(label), seed, step: 0, since: 0, frames: [], source: undefined }
    })
    this.steps = this.images.length * settings.steps
  }

  get ended() {
    return this.state === 'done' || this.state === 'cancelled' || this.state === 'failed'
  }

  /** Whether there is a way to look back on. */
  get hasFrames() {
    return this.images.some(({ frames }) => frames.length > 0)
  }

  cancel() {
    this.#abort.abort(new DOMException('cancelled', 'AbortError'))
  }

  /** Resolves when it has ended, however that was. */
  async start() {
    this.#change('asking')
    try {
      for (let tries = 1; ; tries++) {
        try {
          await this.#make()
          return
        } catch (error) {
          const wait = waitOf(error)
          if (wait === undefined || tries === maxTries) throw error
          await this.#waitFor(wait)
        }
      }
    } catch (error) {
      if (this.#abort.signal.aborted) this.#change('cancelled')
      else {
        this.error = error instanceof ApiError ? error : new ApiError(String(error))
        this.#change('failed')
      }
    }
  }

  async #make() {
    this.#begin = performance.now()
    for await (const event of makeImages(toRequest(this.settings), this.#abort.signal)) {
      if (event.event === 'error') {
        const { code, message } = event.data
        // Of a server that is being stopped, or that gave up: busy only where it says so.
        throw new ApiError(message, { code, status: code === 'ERR_DIT_BUSY' ? 429 : 500 })
      }
      this.#take(event)
    }
    this.seconds = (performance.now() - this.#begin) / 1000
    this.#change('done')
  }

  /** @param {Exclude<ServerEvent, { event: 'error' }>} event */
  #take({ event, data }) {
    if (event === 'queued') this.#change('running')
    if (event === 'progress') {
      this.step = data.step
      this.dispatchEvent(new Event('progress'))
      this.#close()
    }
    if (event === 'preview') {
      const image = this.images[data.index]
      if (image === undefined) return
      image.step = data.step
      image.since = 0
      image.frames.push({ step: data.step, source: data.image })
      this.dispatchEvent(new CustomEvent('image', { detail: data.index }))
    }
    if (event === 'done') {
      for (const { index, mime, data: bytes } of data.images) {
        const image = this.images[index]
        if (image === undefined) continue
        image.source = `data:${mime};base64,${bytes}`
        image.step = this.settings.steps
        // The last prediction is the image itself, or its small twin.
        if (image.frames.at(-1)?.step === this.settings.steps) image.frames.pop()
        this.dispatchEvent(new CustomEvent('image', { detail: index }))
      }
      this.step = this.steps
    }
  }

  /** Images whose last steps, of which there are no previews, must be done by now. */
  #close() {
    const { steps } = this.settings
    const every = previewEvery(steps)
    for (const [index, image] of this.images.entries()) {
      const left = steps - image.step
      if (left === 0 || image.frames.length === 0 || left > every) continue
      image.since += 1
      if (image.since <= left) continue
      image.step = steps
      this.dispatchEvent(new CustomEvent('image', { detail: index }))
    }
  }

  /** @param {number} seconds */
  async #waitFor(seconds) {
    const { signal } = this.#abort
    this.retryAt = Date.now() + seconds * 1000
    this.#change('waiting')
    await new Promise((resolve, reject) => {
      const stop = () => {
        clearTimeout(timer)
        reject(signal.reason)
      }
      const timer = setTimeout(() => {
        signal.removeEventListener('abort', stop)
        resolve(undefined)
      }, seconds * 1000)
      if (signal.aborted) stop()
      else signal.addEventListener('abort', stop, { once: true })
    })
    this.#change('asking')
  }

  /** @param {RunState} state */
  #change(state) {
    this.state = state
    this.dispatchEvent(new Event('state'))
  }
}

/**
 * How long a server wants to be left alone that can do it later, in seconds; undefined: it cannot.
 *
 * @param {unknown} error
 */
function waitOf(error) {
  if (!(error instanceof ApiError)) return undefined
  if (error.status !== 429 && error.status !== 503) return undefined
  if (error.status === 503 && error.retryAfter === undefined) return undefined
  return Math.max(1, error.retryAfter ?? defaultWait)
}
