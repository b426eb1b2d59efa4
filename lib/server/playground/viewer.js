// One image, large, and the way it came.

import { factsLine } from './card.js'
import { announce, byId, h } from './dom.js'
import { saveImage } from './download.js'
import { Picture } from './sheet.js'
import { Timeline } from './timeline.js'

/** @import { Run, RunImage } from './run.js' */

export class Viewer {
  #dialog = byId('viewer', HTMLDialogElement)
  /** @type {Run | undefined} */
  #run = undefined
  #index = 0
  /** @type {() => void} */
  #unwatch = () => {}

  /** @param {(run: Run, index: number) => void} onClosed Where the focus goes. */
  constructor(onClosed) {
    const dialog = this.#dialog
    dialog.addEventListener('close', () => {
      this.#unwatch()
      if (this.#run) onClosed(this.#run, this.#index)
    })
    dialog.addEventListener('click', (event) => {
      if (event.target === dialog) dialog.close()
    })
    dialog.addEventListener('keydown', (event) => {
      if (event.target instanceof HTMLInputElement) return
      if (event.key === 'ArrowRight') this.#go(1)
      if (event.key === 'ArrowLeft') this.#go(-1)
    })
    addEventListener('resize', () => this.#fit())
  }

  /**
   * @param {Run} run
   * @param {number} index
   */
  open(run, index) {
    this.#run = run
    this.#index = index
    this.#show()
    if (!this.#dialog.open) this.#dialog.showModal()
    this.#fit()
    this.#dialog.querySelector('button')?.focus()
  }

  /** @param {number} by */
  #go(by) {
    const count = this.#run?.images.length ?? 0
    if (count < 2) return
    this.#index = (this.#index + by + count) % count
    const focused = document.activeElement?.getAttribute('data-way')
    this.#show()
    this.#fit()
    const again = this.#dialog.querySelector(`[data-way="${focused}"]`)
    if (again instanceof HTMLElement) again.focus()
    const image = this.#run?.images[this.#index]
    announce(`${image?.name}, seed ${image?.seed}`)
  }

  #show() {
    this.#unwatch()
    const run = /** @type {Run} */ (this.#run)
    const image = /** @type {RunImage} */ (run.images[this.#index])
    const { steps } = run.settings
    const picture = new Picture(image, run.model)
    const timeline = new Timeline(steps, (position) => picture.show(position, steps))
    picture.element.setAttribute('role', 'img')
    picture.element.setAttribute('aria-label', `${image.name}, seed ${image.seed}`)
    const update = () => {
      picture.show(steps, steps)
      timeline.element.hidden = !run.ended || image.frames.length === 0
      save.hidden = image.source === undefined
    }
    const way = (
      /** @type {string} */ name,
      /** @type {string} */ text,
      /** @type {() => void} */ onclick,
    ) => h('button', { type: 'button', className: 'quiet', 'data-way': name, onclick }, text)
    const save = h(
      'button',
      { type: 'button', className: 'primary', onclick: () => saveImage(image) },
      'Save PNG',
    )
    const ways = run.images.length > 1 && [
      way('previous', 'Previous', () => this.#go(-1)),
      way('next', 'Next', () => this.#go(1)),
    ]
    this.#dialog.replaceChildren(
      h(
        'div',
        { className: 'viewer-head' },
        ...(ways || []),
        way('close', 'Close', () => this.#dialog.close()),
      ),
      h('div', { className: 'viewer-picture' }, picture.element),
      h(
        'div',
        { className: 'viewer-text' },
        timeline.element,
        h('h2', { id: 'viewer-title' }, image.name),
        h(
          'p',
          { className: 'muted' },
          `seed ${image.seed} · class ${image.label} · ${sizeOf(run)}`,
        ),
        factsLine(run, ['seed']),
        h('div', { className: 'buttons' }, save),
      ),
    )
    update()
    const onImage = (/** @type {Event} */ event) => {
      if (/** @type {CustomEvent} */ (event).detail === this.#index) update()
    }
    run.addEventListener('image', onImage)
    run.addEventListener('state', update)
    this.#unwatch = () => {
      run.removeEventListener('image', onImage)
      run.removeEventListener('state', update)
    }
  }

  /** As large as there is room for; small images by a whole number. */
  #fit() {
    const run = this.#run
    const frame = this.#dialog.querySelector('.viewer-picture')
    if (!this.#dialog.open || run === undefined || frame === null) return
    const { width, height } = run.model.dit.image
    const room = Math.min(frame.clientWidth, (frame.clientHeight * width) / height)
    const unit = width <= 128 ? width / devicePixelRatio : 1
    const size = Math.max(unit, Math.floor(room / unit) * unit)
    this.#dialog.style.setProperty('--tile', `${size}px`)
  }
}

/** @param {Run} run */
function sizeOf({ model }) {
  const { width, height } = model.dit.image
  return `${width}\u00a0×\u00a0${height}`
}
