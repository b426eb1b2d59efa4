// Runs side by side: what differs between their settings stands out, and one slider looks back on all.

import { byId, h } from './dom.js'
import { facts } from './settings.js'
import { Sheet } from './sheet.js'
import { Timeline } from './timeline.js'

/** @import { Run } from './run.js' */

export class Comparison {
  #dialog = byId('compare', HTMLDialogElement)

  /** @param {() => void} onClosed */
  constructor(onClosed) {
    this.#dialog.addEventListener('close', () => {
      this.#dialog.replaceChildren()
      onClosed()
    })
  }

  /** @param {Run[]} runs Two or more. */
  open(runs) {
    const all = runs.map(({ settings }) => facts(settings))
    const names = [...new Set(all.flatMap((one) => [...one.keys()]))]
    const differ = new Set(
      names.filter((name) => new Set(all.map((one) => one.get(name) ?? '')).size > 1),
    )
    // Images of the same size, whichever run has more of them in a row.
    const fitFor = Math.max(...runs.map(({ settings }) => (settings.per > 1 ? settings.per : 1)))
    const sheets = runs.map((run) => new Sheet(run, { fitFor }))
    const longest = Math.max(...runs.map(({ settings }) => settings.steps))
    const timeline = new Timeline(longest, (position) => {
      for (const sheet of sheets) {
        sheet.show(Math.round((position / longest) * sheet.run.settings.steps))
      }
    })
    timeline.element.hidden = !runs.some(({ hasFrames }) => hasFrames)
    const columns = runs.map((run, i) => {
      const terms = names.flatMap((name) => {
        const value = all[i]?.get(name) ?? '–'
        const className = differ.has(name) ? 'differs' : ''
        return [h('div', { className }, h('dt', {}, name), h('dd', {}, value))]
      })
      return h(
        'section',
        { 'aria-label': `Run ${i + 1}: ${[...facts(run.settings)].flat().join(' ')}` },
        h('dl', {}, ...terms),
        sheets[i]?.element,
      )
    })
    const same =
      differ.size === 0 ? 'The settings are the same' : `Different: ${[...differ].join(', ')}`
    this.#dialog.replaceChildren(
      h(
        'div',
        { className: 'compare-head' },
        h('h2', { id: 'compare-title' }, `${runs.length} runs`),
        h('p', { className: 'muted' }, same),
        h(
          'button',
          { type: 'button', className: 'secondary small', onclick: () => this.#dialog.close() },
          'Close',
        ),
      ),
      timeline.element,
      h(
        'div',
        { className: 'columns', tabIndex: 0, role: 'group', 'aria-label': 'Runs' },
        ...columns,
      ),
    )
    this.#dialog.style.setProperty('--runs', String(runs.length))
    this.#dialog.showModal()
    this.#dialog.querySelector('button')?.focus()
  }
}
