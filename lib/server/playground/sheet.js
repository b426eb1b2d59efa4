// The images of a run as a contact sheet. Several of each class: a row for each class, a column for each
// seed. One of each: a field of them, each with its name.

import { h } from './dom.js'
import { drawNoise } from './noise.js'

/** @import { Model } from './api.js' */
/** @import { Run, RunImage } from './run.js' */

/** Below this an image is shown as the pixels that it is, each a whole number of the screen's. */
const crispWidth = 128

/** Of one of each class, in CSS pixels. */
const smallestTile = 96

/** Between tiles, in CSS pixels. */
const gaps = { least: 2, most: 10 }

/**
 * The picture of an image when `position` of its steps are done: the latest one that there is by then;
 * undefined before the first.
 *
 * @param {RunImage} image
 * @param {number} position
 * @param {number} steps
 */
function sourceAt({ frames, source }, position, steps) {
  if (position >= steps && source !== undefined) return source
  return frames.findLast(({ step }) => step <= position)?.source
}

/**
 * A picture that can be shown at any of its steps, with noise beneath.
 */
export class Picture {
  /**
   * @param {RunImage} image
   * @param {Model} model
   */
  constructor(image, { dit }) {
    this.image = image
    this.crisp = dit.image.width <= crispWidth
    this.width = dit.image.width
    // Of larger models the noise is as coarse as their latents are.
    const scale = this.crisp ? 1 : 8
    this.noise = h('canvas', { 'aria-hidden': 'true' })
    const { width, height, channels } = dit.image
    drawNoise(this.noise, image.seed, { width: width / scale, height: height / scale, channels })
    this.shown = h('img', { alt: '', decoding: 'sync', draggable: false })
    this.element = h('span', { className: this.crisp ? 'picture crisp' : 'picture' }, this.noise)
    this.element.style.setProperty('--ratio', `${width} / ${height}`)
  }

  /**
   * @param {number} position Steps done.
   * @param {number} steps Of how many.
   */
  show(position, steps) {
    const source = sourceAt(this.image, position, steps)
    if (source === undefined) this.shown.remove()
    else if (this.shown.src !== source || !this.shown.isConnected) {
      this.shown.src = source
      if (this.shown.parentNode === null) this.element.append(this.shown)
    }
  }
}

/**
 * Columns for `n` images, one of each class: few, and so that the last row is as full as can be.
 *
 * @param {number} n
 * @param {number} most So many are not too small to see.
 */
function columnsFor(n, most) {
  const limit = Math.max(1, Math.min(n, most))
  const least = limit > 3 ? 3 : Math.min(2, limit)
  const holes = (/** @type {number} */ columns) => columns * Math.ceil(n / columns) - n
  const [best = 1] = [4, 5, 3, 2, 1]
    .filter((columns) => columns >= least && columns <= limit)
    .sort((a, b) => holes(a) - holes(b))
  return best
}

export class Sheet {
  /** @type {Picture[]} */
  #pictures
  /** @type {HTMLElement[]} */
  #bars = []
  #columns

  /**
   * @param {Run} run
   * @param {{ maxTile?: number, fitFor?: number, onOpen?: (index: number) => void }} [options] The largest
   * tile in CSS pixels; columns that must fit, if there are fewer; what pressing a tile does.
   */
  constructor(run, { maxTile = 224, fitFor = 1, onOpen } = {}) {
    this.run = run
    this.maxTile = maxTile
    this.fitFor = fitFor
    this.onOpen = onOpen
    this.#pictures = run.images.map((image) => new Picture(image, run.model))
    const { per, classes } = run.settings
    this.#columns = per
    this.element =
      per > 1
        ? h('div', { className: 'sheet rows' }, ...classes.map((_, row) => this.#row(row)))
        : h('ul', { className: 'sheet field-of' }, ...run.images.map((_, i) => this.#alone(i)))
    new ResizeObserver(() => this.#fit()).observe(this.element)
    run.addEventListener('image', (event) =>
      this.#update(/** @type {CustomEvent} */ (event).detail),
    )
    run.addEventListener('state', () => this.#label())
    this.show(run.settings.steps)
    for (const i of run.images.keys()) this.#update(i)
    this.#label()
  }

  /** Shows all images as they were after so many steps. @param {number} position */
  show(position) {
    for (const picture of this.#pictures) picture.show(position, this.run.settings.steps)
  }

  /** Shows where keyboard focus goes. @param {number} index */
  focus(index) {
    this.element.querySelectorAll('button')[index]?.focus()
  }

  /** @param {number} row */
  #row(row) {
    const { per } = this.run.settings
    const first = row * per
    const name = this.run.images[first]?.name ?? ''
    const tiles = Array.from({ length: per }, (_, i) => {
      const seed = row === 0 && h('span', { className: 'seed-of' }, this.run.images[i]?.seed)
      return h('li', {}, seed, this.#tile(first + i))
    })
    return h('div', { className: 'strip' }, h('h3', {}, name), h('ul', {}, ...tiles))
  }

  /** @param {number} index */
  #alone(index) {
    const name = this.run.images[index]?.name ?? ''
    return h('li', {}, this.#tile(index), h('span', { className: 'name' }, name))
  }

  /** @param {number} index */
  #tile(index) {
    const bar = h('span', { className: 'bar' })
    this.#bars.push(bar)
    const picture = /** @type {Picture} */ (this.#pictures[index])
    if (this.onOpen === undefined) return h('span', { className: 'tile' }, picture.element, bar)
    return h(
      'button',
      { type: 'button', className: 'tile', onclick: () => this.onOpen?.(index) },
      picture.element,
      bar,
    )
  }

  /** @param {number} index */
  #update(index) {
    const image = /** @type {RunImage} */ (this.run.images[index])
    const { steps } = this.run.settings
    // What is looked back on stays until the run moves on.
    this.#pictures[index]?.show(steps, steps)
    this.#bars[index]?.style.setProperty('--done', String(image.step / steps))
    this.#bars[index]?.classList.toggle('full', image.step === steps)
  }

  #label() {
    this.element.classList.toggle('moving', !this.run.ended && this.run.state === 'running')
    for (const [i, tile] of this.element.querySelectorAll('.tile').entries()) {
      const { name, seed, source } = /** @type {RunImage} */ (this.run.images[i])
      const what = source === undefined ? (this.run.ended ? ', not finished' : ', forming') : ''
      if (this.onOpen) tile.setAttribute('aria-label', `${name}, seed ${seed}${what}`)
      else {
        tile.setAttribute('role', 'img')
        tile.setAttribute('aria-label', `${name}, seed ${seed}${what}`)
      }
    }
  }

  /** Tiles as large as fit; small images enlarged by a whole number. */
  #fit() {
    const list = this.element.querySelector('.strip ul') ?? this.element
    const available = list.clientWidth
    if (available === 0) return
    const most = Math.floor(available / smallestTile)
    const columns = this.#columns > 1 ? this.#columns : columnsFor(this.run.images.length, most)
    const fit = Math.max(columns, this.fitFor)
    const room = Math.min(this.maxTile, Math.floor((available + gaps.least) / fit) - gaps.least)
    const [picture] = this.#pictures
    const unit = picture?.crisp ? picture.width / devicePixelRatio : 1
    const tile = Math.max(Math.min(unit, room), Math.floor(room / unit) * unit)
    const left = fit > 1 ? Math.floor((available - fit * tile) / (fit - 1)) : gaps.most
    const gap = Math.min(this.maxTile / 16, gaps.most, Math.max(gaps.least, left))
    this.element.style.setProperty('--tile', `${tile}px`)
    this.element.style.setProperty('--gap', `${gap}px`)
    this.element.style.setProperty('--columns', String(columns))
    // What stands above and below the sheet ends where it does.
    const used = this.element.clientWidth - available + columns * (tile + gap) - gap
    this.element.parentElement?.style.setProperty('--used', `${used}px`)
  }
}
