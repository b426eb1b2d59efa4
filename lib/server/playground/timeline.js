// Where a run is between noise and picture: how far it has come, and, when it has ended, a way to look back.

import { h, stillness } from './dom.js'

/** How long all steps take when they are played, in milliseconds. */
const playTime = 2400

export class Timeline {
  #playing = 0

  /**
   * @param {number} steps Of each image.
   * @param {(position: number) => void} onMove
   */
  constructor(steps, onMove) {
    this.steps = steps
    this.onMove = onMove
    this.range = h('input', {
      type: 'range',
      min: '0',
      max: String(steps),
      step: '1',
      value: String(steps),
      'aria-label': 'Look back: after step',
      oninput: () => {
        this.#stop()
        this.#moved()
      },
    })
    this.play = h(
      'button',
      { type: 'button', className: 'quiet', onclick: () => this.#toggle() },
      'Play',
    )
    this.text = h('output', { className: 'position' })
    this.element = h('div', { className: 'timeline' }, this.play, this.range, this.text)
    this.#moved(false)
  }

  get position() {
    return Number(this.range.value)
  }

  /** @param {number} position */
  set position(position) {
    this.range.value = String(position)
    this.#moved()
  }

  #moved(tell = true) {
    const { position, steps } = this
    this.range.style.setProperty('--at', String(position / steps))
    this.range.setAttribute(
      'aria-valuetext',
      position === 0 ? 'noise' : `step ${position} of ${steps}`,
    )
    this.text.textContent = position === 0 ? 'noise' : `${position} / ${steps}`
    if (tell) this.onMove(position)
  }

  #toggle() {
    if (this.#playing !== 0) {
      this.#stop()
      return
    }
    const begin = this.position >= this.steps ? 0 : this.position
    const startedAt = performance.now()
    this.play.textContent = 'Pause'
    const frame = () => {
      const gone = (performance.now() - startedAt) / playTime
      const position = Math.min(this.steps, begin + Math.floor(gone * this.steps))
      // Where movement is unwelcome, it goes in eight stills.
      const shown = stillness.matches
        ? Math.ceil((position * 8) / this.steps) * (this.steps / 8)
        : position
      if (Math.round(shown) !== this.position) this.position = Math.round(shown)
      if (position >= this.steps || !this.element.isConnected) this.#stop()
      else this.#playing = requestAnimationFrame(frame)
    }
    this.#playing = requestAnimationFrame(frame)
  }

  #stop() {
    cancelAnimationFrame(this.#playing)
    this.#playing = 0
    this.play.textContent = 'Play'
  }
}
