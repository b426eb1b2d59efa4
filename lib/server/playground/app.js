// The playground: puts the parts together, and knows which run is on the stage.

import { ApiError, listClasses, listModels, onTokenNeeded } from './api.js'
import { Card } from './card.js'
import { Comparison } from './compare.js'
import { announce, button, byId, h, input } from './dom.js'
import { SettingsForm } from './form.js'
import { Run } from './run.js'
import { defaultSettings, fromHash, problemOf, toHash } from './settings.js'
import { Viewer } from './viewer.js'

/** @import { Model } from './api.js' */
/** @import { Settings } from './settings.js' */

/** Runs that are kept on the page; the oldest ones go first. */
const maxRuns = 24
/** How often a server that is not ready is asked again, in milliseconds. */
const readyEvery = 2000

const current = byId('current', HTMLElement)
const earlier = byId('earlier', HTMLElement)
const list = byId('runs', HTMLElement)

/** @type {Model[]} */
let models = []
/** @type {Model | undefined} */
let model
/** On the stage. @type {Card | undefined} */
let stage
/** Earlier ones, the newest first. @type {Card[]} */
let cards = []
/** The frame in which the draft is drawn anew. */
let drafted = 0

const form = new SettingsForm({
  onGenerate: () => attempt(generate),
  onCancel: () => stage?.run.cancel(),
  onChange: () => draftSoon(),
  onModel: (id) => attempt(() => useModel(id)),
})

const viewer = new Viewer((run, index) => cardOf(run)?.sheet.focus(index))
const comparison = new Comparison(() => button('compare-open').focus())

/** @param {Run} run */
function cardOf(run) {
  return [...(stage ? [stage] : []), ...cards].find((card) => card.run === run)
}

/** @type {import('./card.js').CardActions} */
const actions = {
  onOpen: (run, index) => viewer.open(run, index),
  onAgain: (run) =>
    attempt(async () => {
      if (isRunning()) return
      await use(run.settings)
      await start(run.settings)
    }),
  onUse: (run) =>
    attempt(async () => {
      await use(run.settings)
      input('class-search').focus()
    }),
  onCompare: () => showCompareBar(),
  onRemove: (run) => {
    const card = cardOf(run)
    if (card === undefined) return
    card.element.remove()
    if (card === stage) stage = undefined
    cards = cards.filter((one) => one !== card)
    if (stage === undefined) draft()
    showEarlier()
    announce('Run removed')
    byId('stage', HTMLElement).focus({ preventScroll: true })
  },
}

function isRunning() {
  return stage !== undefined && stage.run.state !== 'draft' && !stage.run.ended
}

/** Puts settings into the form, those of another model as well. @param {Settings} settings */
async function use(settings) {
  if (settings.model === model?.id) form.value = settings
  else await useModel(settings.model, toHash(settings))
  form.lockedSeed = true
}

function generate() {
  if (isRunning()) return
  const settings = form.check()
  if (settings === undefined) return
  return start(settings)
}

/** Does something that needs the server, and says so when it is not there. @param {() => Promise<void> | undefined} action */
async function attempt(action) {
  try {
    await action()
  } catch (error) {
    if (!(error instanceof ApiError)) throw error
    form.refuse(error.message)
  }
}

/** @param {Settings} settings */
async function start(settings) {
  if (model === undefined) return
  const card = new Card(new Run(settings, model, (id) => form.classes.nameOf(id)), actions)
  const before = stage
  if (before && before.run.state !== 'draft') {
    before.shrink()
    cards = [before, ...cards].slice(0, maxRuns)
  }
  stage = card
  current.replaceChildren(
    h('h2', { className: 'hidden', id: 'current-title' }, 'This run'),
    card.element,
  )
  showEarlier()
  history.replaceState(null, '', toHash(settings))
  form.running = true
  // What was pressed has moved, and lost the focus.
  if (document.activeElement === document.body) button('cancel').focus({ preventScroll: true })
  form.showStage()
  await card.run.start()
  form.running = false
  if (card.run.error && card.run.error.status >= 400 && card.run.error.status < 500) {
    form.refuse(card.run.error.status === 401 ? '' : card.run.error.message)
  }
  if (card.run.state === 'done' && !form.lockedSeed) form.newSeed()
}

/** The sheet as it will be, in noise, until there is a first run. */
function draft() {
  if (model === undefined || (stage && stage.run.state !== 'draft')) return
  const settings = form.value
  if (problemOf(settings, model) !== undefined) return
  stage = new Card(new Run(settings, model, (id) => form.classes.nameOf(id)), actions)
  current.replaceChildren(
    h('h2', { className: 'hidden', id: 'current-title' }, 'This run'),
    stage.element,
  )
}

function draftSoon() {
  cancelAnimationFrame(drafted)
  drafted = requestAnimationFrame(draft)
}

function showEarlier() {
  const there = new Set(cards.map(({ element }) => element))
  for (const item of [...list.children]) {
    if (!there.has(/** @type {HTMLElement} */ (item.firstElementChild))) item.remove()
  }
  for (const card of cards.toReversed()) {
    if (!list.contains(card.element)) list.prepend(h('li', {}, card.element))
  }
  earlier.hidden = cards.length === 0
  showCompareBar()
}

function chosenRuns() {
  const all = [...(stage ? [stage] : []), ...cards]
  return all.filter(({ chosen }) => chosen).toReversed()
}

function showCompareBar() {
  const chosen = chosenRuns()
  byId('compare-bar', HTMLElement).hidden = chosen.length === 0
  const enough = chosen.length > 1
  byId('compare-count', HTMLElement).textContent = enough
    ? `${chosen.length} runs`
    : 'One run: choose another'
  button('compare-open').disabled = !enough
}

button('compare-open').addEventListener('click', () => {
  comparison.open(chosenRuns().map(({ run }) => run))
})
button('compare-clear').addEventListener('click', () => {
  for (const card of chosenRuns()) card.chosen = false
  showCompareBar()
})

/**
 * @param {string} id
 * @param {string} [hash] Settings to begin with.
 */
async function useModel(id, hash = '') {
  const found = models.find((one) => one.id === id) ?? models[0]
  if (found === undefined) return
  const classes = await listClasses(found.id)
  model = found
  form.setModel(found, classes)
  form.value = fromHash(hash, defaultSettings(found), found)
  // Who follows a link wants its pictures again.
  if (new URLSearchParams(hash.slice(1)).has('seed')) form.lockedSeed = true
  const { image, numClasses, device, precision } = found.dit
  byId('about', HTMLElement).textContent = [
    ...(models.length === 1 ? [found.id] : []),
    `${image.width} × ${image.height}`,
    `${numClasses} classes`,
    `${device}, ${precision}`,
  ].join(' · ')
  draft()
}

/** @param {boolean} wrong */
function askForToken(wrong) {
  const dialog = byId('token', HTMLDialogElement)
  const field = input('token-input')
  byId('token-text', HTMLElement).textContent = wrong
    ? 'That was not the right one.'
    : 'It stays in this tab, and is forgotten when the tab is closed.'
  field.value = ''
  /** @type {Promise<string | undefined>} */
  const entered = new Promise((resolve) => {
    const finish = (/** @type {string | undefined} */ token) => {
      stop.abort()
      dialog.close()
      resolve(token)
    }
    const stop = new AbortController()
    const { signal } = stop
    byId('token-form', HTMLFormElement).addEventListener(
      'submit',
      (event) => {
        event.preventDefault()
        finish(field.value.trim() || undefined)
      },
      { signal },
    )
    button('token-cancel').addEventListener('click', () => finish(undefined), { signal })
    dialog.addEventListener('cancel', () => finish(undefined), { signal })
  })
  dialog.showModal()
  return entered
}

/** @param {unknown} error */
function showNotReady(error) {
  const needsToken = error instanceof ApiError && error.status === 401
  const text = needsToken
    ? 'This server asks for a token.'
    : error instanceof ApiError && error.status === 0
      ? 'The server does not answer. Asking again.'
      : error instanceof ApiError
        ? `${error.message}.`
        : 'The model is being loaded.'
  const again = h(
    'button',
    { type: 'button', className: 'secondary small', onclick: () => begin() },
    'Enter it',
  )
  const trouble = h(
    'div',
    { className: 'trouble', role: 'alert' },
    h('p', {}, text),
    needsToken && again,
  )
  if (current.querySelector('.trouble')?.textContent !== trouble.textContent) {
    current.replaceChildren(
      h('h2', { className: 'hidden', id: 'current-title' }, 'This run'),
      trouble,
    )
  }
  if (!needsToken) setTimeout(begin, readyEvery)
}

async function begin() {
  button('generate').setAttribute('aria-disabled', 'true')
  try {
    models = await listModels()
    if (models.length === 0) {
      showNotReady(undefined)
      return
    }
    form.models = models
    await useModel(new URLSearchParams(location.hash.slice(1)).get('model') ?? '', location.hash)
    button('generate').setAttribute('aria-disabled', 'false')
  } catch (error) {
    if (!(error instanceof ApiError)) throw error
    showNotReady(error)
  }
}

addEventListener('hashchange', () => {
  if (isRunning()) return
  const id = new URLSearchParams(location.hash.slice(1)).get('model') ?? ''
  attempt(() => useModel(id, location.hash))
})

onTokenNeeded(askForToken)
begin()
