// The settings: from the fields to a value and back.

import { ClassChoice } from './classes.js'
import { button, byId, h, input, stillness } from './dom.js'
import { problemOf, randomSeed, samplerName } from './settings.js'

/** @import { ClassEntry, Model } from './api.js' */
/** @import { Settings } from './settings.js' */

export class SettingsForm {
  #form = byId('settings', HTMLFormElement)
  #problem = byId('form-problem', HTMLElement)
  #generate = button('generate')
  #cancel = button('cancel')
  /** @type {Model | undefined} */
  #model = undefined

  /** @param {{ onGenerate: () => void, onCancel: () => void, onChange: () => void, onModel: (id: string) => void }} on */
  constructor(on) {
    this.on = on
    this.classes = new ClassChoice(() => this.#changed())
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault()
      if (this.#generate.getAttribute('aria-disabled') !== 'true') on.onGenerate()
    })
    this.#form.addEventListener('input', (event) => {
      if (event.target !== input('class-search')) this.#changed()
    })
    this.#cancel.addEventListener('click', () => on.onCancel())
    button('new-seed').addEventListener('click', () => {
      this.newSeed()
      this.#changed()
    })
    byId('model', HTMLSelectElement).addEventListener('change', (event) => {
      on.onModel(/** @type {HTMLSelectElement} */ (event.target).value)
    })
    // A number and its slider.
    for (const id of ['steps', 'guidance']) {
      const [number, range] = [input(id), input(`${id}-range`)]
      number.addEventListener('input', () => {
        range.value = number.value
      })
      range.addEventListener('input', () => {
        number.value = range.value
      })
    }
  }

  get lockedSeed() {
    return input('lock').checked
  }

  set lockedSeed(locked) {
    input('lock').checked = locked
  }

  newSeed() {
    input('seed').value = String(randomSeed())
  }

  /** @param {Model[]} models */
  set models(models) {
    byId('model-field', HTMLElement).hidden = models.length < 2
    byId('model', HTMLSelectElement).replaceChildren(
      ...models.map(({ id }) => h('option', { value: id }, id)),
    )
  }

  /**
   * @param {Model} model
   * @param {ClassEntry[]} classes
   */
  setModel(model, classes) {
    this.#model = model
    const { limits, samplers, nullClass } = model.dit
    byId('model', HTMLSelectElement).value = model.id
    this.classes.all = classes
    input('per').max = String(limits.images)
    input('steps').max = String(limits.steps)
    input('steps-range').max = String(Math.min(limits.steps, 100))
    input('guidance').disabled = !nullClass
    input('guidance-range').disabled = !nullClass
    byId('samplers', HTMLElement).replaceChildren(
      ...samplers.map((name) =>
        h(
          'label',
          {},
          h('input', { type: 'radio', name: 'sampler', value: name }),
          h('span', {}, samplerName(name)),
        ),
      ),
    )
  }

  /** @param {Settings} settings */
  set value(settings) {
    this.classes.chosen = settings.classes
    input('per').value = String(settings.per)
    for (const radio of this.#samplers()) radio.checked = radio.value === settings.sampler
    for (const id of /** @type {const} */ (['steps', 'guidance'])) {
      input(id).value = String(settings[id])
      input(`${id}-range`).value = String(settings[id])
    }
    input('seed').value = String(settings.seed)
    input('eta').value = String(settings.eta)
    input('interval-from').value = String(settings.interval[0])
    input('interval-to').value = String(settings.interval[1])
    const isPlain = settings.eta === 0 && settings.interval[0] === 0 && settings.interval[1] === 1
    if (!isPlain) byId('more', HTMLDetailsElement).open = true
    this.#show()
  }

  /** What the fields say, right or wrong. @returns {Settings} */
  get value() {
    const number = (/** @type {string} */ id) => {
      const text = input(id).value.trim()
      return text === '' ? Number.NaN : Number(text)
    }
    return {
      model: this.#model?.id ?? '',
      classes: this.classes.chosen,
      per: number('per'),
      sampler: this.#samplers().find(({ checked }) => checked)?.value ?? '',
      steps: number('steps'),
      guidance: number('guidance'),
      seed: number('seed'),
      eta: number('eta'),
      interval: [number('interval-from'), number('interval-to')],
    }
  }

  /** The settings, or undefined when one is wrong: then it is shown, and has the focus. */
  check() {
    const { value } = this
    const problem = this.#model && problemOf(value, this.#model)
    if (problem === undefined) return value
    this.#show()
    const field = input(problem.id)
    field.closest('details')?.setAttribute('open', '')
    field.focus()
    return undefined
  }

  /** @param {boolean} running */
  set running(running) {
    const hadFocus = document.activeElement === this.#cancel
    this.#generate.setAttribute('aria-disabled', String(running))
    this.#generate.textContent = running ? 'Generating' : 'Generate'
    this.#cancel.hidden = !running
    if (hadFocus && !running) this.#generate.focus()
  }

  /** Shows what the server said about them. @param {string} message */
  refuse(message) {
    this.#problem.textContent = message
  }

  #samplers() {
    const all = byId('samplers', HTMLElement).querySelectorAll('input')
    return [...all]
  }

  #changed() {
    this.#show()
    this.on.onChange()
  }

  /** What follows from the fields: limits, hints, what is wrong. */
  #show() {
    if (this.#model === undefined) return
    const { value } = this
    for (const id of ['steps', 'guidance']) {
      const range = input(`${id}-range`)
      const share =
        (Number(range.value) - Number(range.min)) / (Number(range.max) - Number(range.min))
      range.style.setProperty('--at', String(share))
    }
    input('eta').disabled = value.sampler !== 'ddim'
    byId('steps-hint', HTMLElement).textContent =
      value.sampler === 'ddpm' && value.steps < 100 ? 'DDPM is made for some 250 steps.' : ''
    const problem = problemOf(value, this.#model)
    this.#problem.textContent = problem?.message ?? ''
    for (const field of this.#form.querySelectorAll('[aria-invalid]')) {
      field.removeAttribute('aria-invalid')
    }
    if (problem) input(problem.id).setAttribute('aria-invalid', 'true')
  }

  /** Brings the images into view where they are below the settings. */
  showStage() {
    const stage = byId('stage', HTMLElement)
    if (stage.getBoundingClientRect().top < innerHeight / 2) return
    stage.scrollIntoView({ behavior: stillness.matches ? 'auto' : 'smooth', block: 'start' })
  }
}
