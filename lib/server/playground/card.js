// A run on the page: its settings in a line, its sheet, how far it is, what can be done with it.

import { announce, h } from './dom.js'
import { saveGrid } from './download.js'
import { facts, toHash } from './settings.js'
import { Sheet } from './sheet.js'
import { Timeline } from './timeline.js'

/** @import { Run } from './run.js' */

/**
 * @typedef {object} CardActions
 * @property {(run: Run, index: number) => void} onOpen An image was pressed.
 * @property {(run: Run) => void} onAgain
 * @property {(run: Run) => void} onUse
 * @property {(run: Run, chosen: boolean) => void} onCompare
 * @property {(run: Run) => void} onRemove
 */

/** Tiles of earlier runs, in CSS pixels. */
const smallTile = 64

/**
 * The settings in a line.
 *
 * @param {Run} run
 * @param {string[]} [without] Names of those that stand elsewhere.
 */
export function factsLine({ settings }, without = []) {
  const told = [...facts(settings)].filter(([name]) => !without.includes(name))
  const parts = told.map(([name, value]) =>
    name === 'sampler' ? value : name === 'steps' ? `${value} steps` : `${name} ${value}`,
  )
  return h('p', { className: 'facts' }, ...parts.map((part) => h('span', {}, part)))
}

export class Card {
  #state = h('p', { className: 'state' })
  #progress = h('div', {
    className: 'progress',
    role: 'progressbar',
    'aria-label': 'Solver steps',
    'aria-valuemin': '0',
  })
  #way = h('div', { className: 'way' })
  #problem = h('div', { className: 'trouble', hidden: true })
  #buttons = h('div', { className: 'buttons' })
  #chosen = h(
    'button',
    {
      type: 'button',
      className: 'quiet choose',
      'aria-pressed': 'false',
      onclick: () => {
        this.chosen = !this.chosen
        this.on.onCompare(this.run, this.chosen)
      },
    },
    'Compare',
  )
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #countdown = undefined
  #quarter = 0

  /**
   * @param {Run} run
   * @param {CardActions} on
   */
  constructor(run, on) {
    this.run = run
    this.on = on
    this.sheet = new Sheet(run, { onOpen: (index) => on.onOpen(run, index) })
    this.timeline = new Timeline(run.settings.steps, (position) => this.sheet.show(position))
    this.element = h(
      'article',
      { className: 'run', 'aria-label': `Run with seed ${run.settings.seed}` },
      h('header', {}, factsLine(run), this.#state),
      this.#problem,
      this.sheet.element,
      this.#way,
      this.#buttons,
    )
    this.#progress.setAttribute('aria-valuemax', String(run.steps))
    run.addEventListener('state', () => this.#show())
    run.addEventListener('progress', () => this.#showProgress())
    this.#show()
  }

  get chosen() {
    return this.#chosen.getAttribute('aria-pressed') === 'true'
  }

  set chosen(chosen) {
    this.#chosen.setAttribute('aria-pressed', String(chosen))
  }

  /** As one of the earlier ones. */
  shrink() {
    this.element.classList.add('small')
    this.sheet.maxTile = smallTile
    this.timeline.element.remove()
    this.sheet.show(this.run.settings.steps)
  }

  #show() {
    const { run } = this
    clearInterval(this.#countdown)
    this.element.dataset.state = run.state
    this.#problem.hidden = true
    this.#showProgress()
    if (run.state === 'draft') this.#way.replaceChildren()
    else if (!run.ended) this.#way.replaceChildren(this.#progress)
    else if (run.hasFrames) this.#way.replaceChildren(this.timeline.element)
    else this.#way.replaceChildren()
    if (run.state === 'waiting') this.#wait()
    if (run.state === 'failed') this.#fail()
    this.#buttons.replaceChildren(...this.#actions())
    this.#announce()
  }

  #showProgress() {
    const { run } = this
    this.#progress.style.setProperty('--done', String(run.step / run.steps))
    this.#progress.setAttribute('aria-valuenow', String(run.step))
    this.#state.textContent = this.#stateText()
    const quarter = Math.floor((run.step * 4) / run.steps)
    if (run.state === 'running' && quarter > this.#quarter && quarter < 4) {
      this.#quarter = quarter
      announce(`${quarter * 25} percent`)
    }
  }

  #stateText() {
    const { state, step, steps, images, seconds } = this.run
    const count = `${images.length} ${images.length === 1 ? 'image' : 'images'}`
    if (state === 'draft') return count
    if (state === 'asking' || (state === 'running' && step === 0)) return 'Beginning'
    if (state === 'running') return `Step ${step} of ${steps}`
    if (state === 'done') return `${count} in ${seconds.toFixed(seconds < 10 ? 1 : 0)} s`
    if (state === 'cancelled') return `Cancelled after ${step} of ${steps} steps`
    return state === 'waiting' ? 'Waiting' : 'Failed'
  }

  #announce() {
    const { run } = this
    if (run.state === 'running' && run.step === 0) announce('Generating')
    if (run.state === 'done') announce(`Finished: ${this.#stateText()}`)
    if (run.state === 'cancelled') announce('Cancelled')
  }

  #wait() {
    const text = h('p', {})
    const left = () => Math.max(0, Math.ceil((this.run.retryAt - Date.now()) / 1000))
    const tell = () => {
      text.textContent = `The server is busy. Asking again in ${left()} s.`
    }
    tell()
    announce(text.textContent ?? '')
    this.#countdown = setInterval(tell, 1000)
    this.#problem.hidden = false
    this.#problem.setAttribute('role', 'group')
    this.#problem.replaceChildren(text)
  }

  #fail() {
    const { error } = this.run
    this.#problem.hidden = false
    this.#problem.setAttribute('role', 'alert')
    const names = error?.suggestions.map(({ id, name }) => `${name} (${id})`).join('; ')
    this.#problem.replaceChildren(
      h('p', {}, h('strong', {}, titleOf(error?.status ?? 0))),
      h('p', {}, `${error?.message ?? ''}.`.replace(/([.!?])\.$/, '$1')),
      h('p', { hidden: !names }, `Close to it: ${names}`),
    )
  }

  #actions() {
    const { run, on } = this
    if (!run.ended) return []
    const quiet = (/** @type {string} */ text, /** @type {(event: Event) => void} */ onclick) =>
      h('button', { type: 'button', className: 'quiet', onclick }, text)
    const again = quiet(run.state === 'done' ? 'Run again' : 'Try again', () => on.onAgain(run))
    const rest = [
      quiet('Use settings', () => on.onUse(run)),
      quiet('Copy link', (event) => copyLink(run, event.currentTarget)),
      quiet('Remove', () => on.onRemove(run)),
    ]
    if (run.state === 'failed') return [again, ...rest]
    const save = run.state === 'done' && quiet('Save grid', () => saveGrid(run))
    return [...(save ? [save] : []), this.#chosen, again, ...rest]
  }
}

/** @param {number} status */
function titleOf(status) {
  if (status === 0) return 'No connection'
  if (status === 429) return 'The server is busy'
  if (status === 401) return 'No token, no images'
  return status < 500 ? 'The server refused this' : 'The server could not do this'
}

/**
 * @param {Run} run
 * @param {EventTarget | null} target The button that is told how it went.
 */
async function copyLink(run, target) {
  const hash = toHash(run.settings)
  history.replaceState(null, '', hash)
  // Pages that are not from this machine and not encrypted have no clipboard.
  const copied = await navigator.clipboard?.writeText(location.href).then(
    () => true,
    () => false,
  )
  const text = copied ? 'Copied' : 'In the address bar'
  announce(copied ? 'Link copied' : 'The link is in the address bar')
  if (!(target instanceof HTMLElement)) return
  target.textContent = text
  setTimeout(() => {
    target.textContent = 'Copy link'
  }, 2000)
}
