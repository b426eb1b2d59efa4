// The choice of classes: an input that searches the list as one types (the combobox pattern of WAI-ARIA's
// authoring practices, with a listbox in which several can be chosen), and the chosen ones as chips.

import { announce, byId, h, input } from './dom.js'

/** @import { ClassEntry } from './api.js' */

/** So many are listed; whoever wants others types on. */
const maxListed = 60

/** The first of a class's comma-separated names. @param {string} name */
export function shortName(name) {
  return name.split(',', 1)[0]?.trim() ?? name
}

/** @param {string} text */
function wordsOf(text) {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []
}

/**
 * Classes that fit what was typed, the best first: the number, a whole name, the beginning of a name,
 * beginnings of its words, anything within it.
 *
 * @param {readonly ClassEntry[]} all
 * @param {string} text
 */
export function searchClasses(all, text) {
  const wanted = text.trim().toLowerCase()
  if (wanted === '') return [...all]
  const words = wordsOf(wanted)
  const rank = (/** @type {ClassEntry} */ { id, name }) => {
    const lower = name.toLowerCase()
    const names = lower.split(',').map((part) => part.trim())
    if (String(id) === wanted || names.includes(wanted)) return 0
    if (names.some((one) => one.startsWith(wanted))) return 1
    const within = wordsOf(lower)
    if (words.length > 0 && words.every((word) => within.some((one) => one.startsWith(word))))
      return 2
    return lower.includes(wanted) ? 3 : undefined
  }
  return all
    .flatMap((entry) => {
      const score = rank(entry)
      return score === undefined ? [] : [{ entry, score }]
    })
    .sort((a, b) => a.score - b.score || a.entry.id - b.entry.id)
    .map(({ entry }) => entry)
}

export class ClassChoice {
  /** @type {readonly ClassEntry[]} */
  #all = []
  /** @type {number[]} */
  #chosen = []
  /** @type {ClassEntry[]} */
  #listed = []
  /** In the list; -1: none. */
  #active = -1
  #input = input('class-search')
  #popup = byId('class-popup', HTMLElement)
  #list = byId('class-list', HTMLElement)
  #more = byId('class-more', HTMLElement)
  #chips = byId('chips', HTMLElement)

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.onChange = onChange
    const field = this.#input
    field.addEventListener('input', () => this.#open())
    field.addEventListener('click', () => this.#open())
    field.addEventListener('keydown', (event) => this.#key(event))
    field.addEventListener('blur', () => this.#close())
    // Not to take the focus from the input.
    this.#popup.addEventListener('mousedown', (event) => event.preventDefault())
    this.#list.addEventListener('click', (event) => {
      const option = event.target instanceof Element ? event.target.closest('[role=option]') : null
      const index = option === null ? -1 : [...this.#list.children].indexOf(option)
      if (index >= 0) this.#toggle(index)
    })
    this.#chips.addEventListener('keydown', (event) => this.#chipKey(event))
  }

  /** @param {readonly ClassEntry[]} all */
  set all(all) {
    this.#all = all
    byId('class-hint', HTMLElement).textContent =
      `${all.length} ${all.length === 1 ? 'class' : 'classes'}`
  }

  get chosen() {
    return [...this.#chosen]
  }

  set chosen(ids) {
    this.#chosen = [...ids]
    this.#showChips()
  }

  /** @param {number} id */
  nameOf(id) {
    return shortName(this.#all[id]?.name ?? `class ${id}`)
  }

  get #isOpen() {
    return !this.#popup.hidden
  }

  #open() {
    this.#listed = searchClasses(this.#all, this.#input.value)
    this.#active = this.#input.value.trim() === '' || this.#listed.length === 0 ? -1 : 0
    this.#popup.hidden = false
    this.#input.setAttribute('aria-expanded', 'true')
    this.#showList()
  }

  #close() {
    this.#popup.hidden = true
    this.#active = -1
    this.#input.setAttribute('aria-expanded', 'false')
    this.#input.removeAttribute('aria-activedescendant')
  }

  #showList() {
    const shown = this.#listed.slice(0, maxListed)
    this.#list.replaceChildren(
      ...shown.map(({ id, name }) =>
        h(
          'div',
          {
            className: 'option',
            id: `class-${id}`,
            role: 'option',
            'aria-selected': this.#chosen.includes(id),
          },
          h('span', { className: 'number', 'aria-hidden': 'true' }, id),
          h('span', {}, name),
        ),
      ),
    )
    const rest = this.#listed.length - shown.length
    this.#more.textContent =
      shown.length === 0 ? 'No class is called that' : rest > 0 ? `${rest} more: type on` : ''
    this.#list.hidden = shown.length === 0
    this.#showActive()
  }

  #showActive() {
    for (const [i, option] of [...this.#list.children].entries()) {
      option.classList.toggle('active', i === this.#active)
      if (i === this.#active) option.scrollIntoView({ block: 'nearest' })
    }
    const active = this.#list.children[this.#active]
    if (active === undefined) this.#input.removeAttribute('aria-activedescendant')
    else this.#input.setAttribute('aria-activedescendant', active.id)
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { key } = event
    if (key === 'ArrowDown' || key === 'ArrowUp') {
      event.preventDefault()
      if (!this.#isOpen) this.#open()
      const count = this.#list.children.length
      if (count === 0) return
      const from = this.#active < 0 && key === 'ArrowUp' ? 0 : this.#active
      this.#active = (from + (key === 'ArrowDown' ? 1 : -1) + count) % count
      this.#showActive()
    } else if (key === 'Enter') {
      // Never sends the form: what is being typed here is half a name.
      event.preventDefault()
      if (this.#isOpen && this.#active >= 0) this.#toggle(this.#active)
    } else if (key === 'Escape') {
      if (this.#isOpen) event.preventDefault()
      if (!this.#isOpen) this.#input.value = ''
      this.#close()
    } else if (key === 'Backspace' && this.#input.value === '') {
      const last = this.#chosen.at(-1)
      if (last !== undefined) this.#remove(last)
    }
  }

  /** @param {number} index In the list. */
  #toggle(index) {
    const entry = this.#listed[index]
    if (entry === undefined) return
    if (this.#chosen.includes(entry.id)) {
      this.#remove(entry.id)
      this.#showList()
      return
    }
    this.#chosen.push(entry.id)
    this.#input.value = ''
    this.#showChips()
    announce(`${shortName(entry.name)} chosen`)
    this.onChange()
    this.#listed = searchClasses(this.#all, '')
    this.#active = this.#listed.indexOf(entry)
    // Beyond what is listed there is nothing to stay on.
    if (this.#active >= maxListed) this.#active = -1
    this.#showList()
  }

  /** @param {number} id */
  #remove(id) {
    this.#chosen = this.#chosen.filter((one) => one !== id)
    this.#showChips()
    announce(`${this.nameOf(id)} removed`)
    this.onChange()
  }

  #showChips() {
    this.#chips.replaceChildren(
      ...this.#chosen.map((id) => {
        const name = this.nameOf(id)
        const remove = h(
          'button',
          {
            type: 'button',
            'aria-label': `Remove ${name}`,
            onclick: () => {
              const index = this.#chosen.indexOf(id)
              this.#remove(id)
              this.#focusChip(index)
            },
          },
          h('span', { 'aria-hidden': 'true' }, '×'),
        )
        return h('li', {}, h('span', { className: 'called' }, name), remove)
      }),
    )
    this.#chips.hidden = this.#chosen.length === 0
  }

  /** @param {number} index Of a chip that is no longer there. */
  #focusChip(index) {
    const chips = this.#chips.querySelectorAll('button')
    const next = chips[Math.min(index, chips.length - 1)]
    if (next) next.focus()
    else this.#input.focus()
  }

  /** @param {KeyboardEvent} event */
  #chipKey(event) {
    if (event.key !== 'Delete' && event.key !== 'Backspace') return
    if (!(event.target instanceof HTMLButtonElement)) return
    event.preventDefault()
    event.target.click()
  }
}
