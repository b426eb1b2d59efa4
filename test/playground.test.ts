// The page at / in Chromium, with real models behind it.
// timeout: 180s
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { FastifyInstance } from 'fastify'
import type { Browser, Page } from 'playwright-core'
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT } from '../lib/index.js'
import { assertAccessible, launchBrowser, openPage, overflowOf } from './helpers/browser.js'
import { appWith } from './helpers/server.js'

const root = fileURLToPath(new URL('..', import.meta.url))
/** Of one request, and of all together. */
const maxImages = 16
const patience = 60_000

let browser: Browser
let demo: DiT
let many: DiT
let app: FastifyInstance
let url: string

test.before(async () => {
  browser = await launchBrowser()
  demo = await DiT.load('demo', { device: 'cpu' })
  // Colours, and more classes than fit a list.
  const shape = {
    depth: 1,
    hidden: 32,
    heads: 1,
    patchSize: 4,
    latentSize: [16, 24] as [number, number],
  }
  const id2label = Object.fromEntries(
    Array.from({ length: 20_000 }, (_, id) => [
      id,
      id === 12_345 ? 'grey whale, gray whale' : `kind ${id}`,
    ]),
  )
  many = await DiT.create(
    { ...shape, channels: 3, numClasses: 20_000 },
    { seed: 1, device: 'cpu', precision: 'fp32', id2label },
  )
  // Without a cache everything is made anew, and the same picture twice means something.
  const limits = { images: maxImages, inFlight: maxImages }
  app = await appWith({ demo, many }, { cacheBytes: 0, limits })
  url = `${await app.listen({ port: 0 })}/`
})

test.after(async () => {
  await browser?.close()
  await app?.close()
  await demo?.close()
  await many?.close()
})

/** Settings of a run that takes no time. */
const quick = '#classes=1.9&per=1&steps=6&guidance=2&seed=7'

const stateOf = (page: Page, state: string) =>
  page.waitForSelector(`#current [data-state=${state}]`, { timeout: patience })

async function generate(page: Page, state = 'done'): Promise<void> {
  await page.click('#generate')
  await page.waitForSelector('#current .run:not([data-state=draft])')
  await stateOf(page, state)
}

const ready = (page: Page) => page.waitForSelector('#current .tile', { timeout: patience })

/** The pictures of the run on the stage: data URLs, empty where there is only noise. */
function pictures(page: Page): Promise<string[]> {
  return page.$$eval('#current .picture', (all) =>
    all.map((one) => one.querySelector('img')?.src ?? ''),
  )
}

const bytesOf = (dataUrl: string) => Buffer.from(dataUrl.slice(dataUrl.indexOf(',') + 1), 'base64')

test('its modules pass the type checker', () => {
  const tsc = `${root}node_modules/typescript/bin/tsc`
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', 'lib/server/playground'], {
    cwd: root,
    encoding: 'utf8',
  })
  assert.is(status, 0, stdout)
})

test('images form from noise, and are what the library makes', async () => {
  const { page, faults } = await openPage(
    browser,
    // So many steps that the page can follow, however fast the machine is.
    `${url}#classes=1.9&per=2&steps=250&guidance=2&seed=7`,
  )
  await ready(page)
  assert.equal(await pictures(page), ['', '', '', ''], 'noise')
  await assertAccessible(page, 'before the first run')

  await page.evaluate(() => {
    const seen = new Set<string>()
    Object.assign(window, { seen })
    new MutationObserver(() => {
      const image = document.querySelector('#current .picture img')
      if (image instanceof HTMLImageElement) seen.add(image.src)
    }).observe(document.body, { subtree: true, childList: true, attributes: true })
  })
  await page.click('#generate')
  await page.waitForSelector('#current .picture img', { timeout: patience })
  const bar = page.locator('#current [role=progressbar]')
  assert.is(await bar.getAttribute('aria-valuemax'), '1000')
  await stateOf(page, 'done')
  const seen = await page.evaluate(() => (window as unknown as { seen: Set<string> }).seen.size)
  assert.ok(seen >= 4, `${seen} pictures of the first image`)

  const expected = await demo.sample([1, 1, 9, 9], { seeds: [7, 8, 7, 8], steps: 250, guidance: 2 })
  const shown = await pictures(page)
  for (const [i, picture] of shown.entries()) {
    const pixels = await sharp(bytesOf(picture)).extractChannel(0).raw().toBuffer()
    assert.equal(new Uint8Array(pixels), expected[i]?.data, `image ${i}`)
  }
  await assertAccessible(page, 'after a run')

  // Looking back: noise first, then what it was on its way.
  const slider = page.locator('#current input[type=range]')
  await slider.press('Home')
  assert.equal(await pictures(page), ['', '', '', ''])
  assert.is(await slider.getAttribute('aria-valuetext'), 'noise')
  await slider.fill('200')
  const onTheWay = await pictures(page)
  assert.ok(onTheWay.every((picture, i) => picture !== '' && picture !== shown[i]))
  await slider.press('End')
  assert.equal(await pictures(page), shown)

  // The same settings again: the same pictures, bit for bit. The run before is kept.
  await page.getByRole('button', { name: 'Run again' }).click()
  await page.waitForSelector('#runs .run')
  await stateOf(page, 'done')
  assert.equal(await pictures(page), shown)
  assert.equal(faults, [])
  await page.context().close()
})

test('cancelling frees the lanes', async () => {
  const { page, faults } = await openPage(
    browser,
    `${url}#classes=0.1.2.3&per=4&steps=250&guidance=4`,
  )
  await ready(page)
  await page.click('#generate')
  await page.waitForSelector('#current .picture img', { timeout: patience })
  assert.ok(demo.stats().lanes > 0)
  await assertAccessible(page, 'during a run')
  await page.focus('#cancel')
  await page.keyboard.press('Enter')
  await stateOf(page, 'cancelled')
  assert.is(await page.evaluate(() => document.activeElement?.id), 'generate', 'focus')
  for (let i = 0; i < 500 && demo.stats().lanes + demo.stats().waiting > 0; i++)
    await setTimeout(20)
  const { lanes, waiting } = demo.stats()
  assert.equal({ lanes, waiting }, { lanes: 0, waiting: 0 })
  // So does leaving the page.
  await page.click('#generate')
  await page.waitForFunction(() => document.querySelector('#current .picture img'))
  assert.equal(faults, [])
  await page.context().close()
  for (let i = 0; i < 500 && demo.stats().lanes + demo.stats().waiting > 0; i++)
    await setTimeout(20)
  assert.is(demo.stats().lanes + demo.stats().waiting, 0)
})

test('everything by keyboard: classes by name, a run, an image, comparing', async () => {
  const { page, faults } = await openPage(browser, `${url}${quick.replace('steps=6', 'steps=250')}`)
  await ready(page)
  const chips = () => page.$$eval('#chips .called', (all) => all.map((one) => one.textContent))
  const press = (...keys: string[]) =>
    keys.reduce((before, key) => before.then(() => page.keyboard.press(key)), Promise.resolve())
  assert.equal(await chips(), ['Trouser', 'Ankle boot'])
  await page.focus('#class-search')
  await press('Backspace')
  assert.equal(await chips(), ['Trouser'])
  await page.keyboard.type('boo')
  const search = page.locator('#class-search')
  const active = page.locator(`#${await search.getAttribute('aria-activedescendant')}`)
  assert.match(await active.innerText(), 'Ankle boot')
  await assertAccessible(page, 'while searching a class')
  await press('Enter')
  assert.equal(await chips(), ['Trouser', 'Ankle boot'])
  await press('Escape')
  assert.is(await search.getAttribute('aria-expanded'), 'false')
  await page.keyboard.type('zzz')
  assert.match(await page.innerText('#class-popup'), 'No class is called that')
  await press('Escape', 'Escape')
  assert.is(await search.inputValue(), '')

  await page.focus('#guidance')
  await press('Control+A')
  await page.keyboard.type('1')
  await press('Enter')
  await page.waitForSelector('#current .run:not([data-state=draft])')
  await stateOf(page, 'done')

  const first = page.locator('#current .tile').first()
  await first.focus()
  await press('Enter')
  await page.waitForSelector('#viewer[open]')
  assert.match(await page.innerText('#viewer'), /Trouser[\s\S]*seed 7/i)
  await assertAccessible(page, 'one image')
  await press('ArrowRight')
  assert.match(await page.innerText('#viewer-title'), 'Ankle boot')
  await press('Escape')
  // Of the image that was looked at last, once the dialog has told that it was closed.
  await page.waitForFunction(
    () => document.activeElement?.getAttribute('aria-label') === 'Ankle boot, seed 7',
  )

  // A second run, with more guidance; then both side by side.
  await page.fill('#guidance', '5')
  await page.fill('#seed', '7')
  await generate(page)
  for (const choose of await page.locator('.choose').all()) {
    await choose.focus()
    await press('Space')
  }
  await page.focus('#compare-open')
  await assertAccessible(page, 'two runs')
  await press('Enter')
  await page.waitForSelector('#compare[open]')
  assert.match(await page.innerText('#compare'), 'Different: guidance')
  assert.equal(
    await page.$$eval('#compare .differs dd', (all) => all.map((one) => one.textContent)),
    ['1', '5'],
  )
  assert.is(await page.locator('#compare .columns .picture img').count(), 4)
  await assertAccessible(page, 'side by side')
  await page.locator('#compare input[type=range]').press('Home')
  assert.is(await page.locator('#compare .columns .picture img').count(), 0)
  await press('Escape')
  assert.is(await page.evaluate(() => document.activeElement?.id), 'compare-open')
  assert.equal(faults, [])
  await page.context().close()
})

test('saves an image and a grid, and links to its settings', async () => {
  const { page, faults } = await openPage(browser, `${url}${quick}`)
  await ready(page)
  await generate(page)
  const [first = '', second = ''] = await pictures(page)
  await page.locator('#current .tile').first().click()
  const [image] = await Promise.all([
    page.waitForEvent('download'),
    page.getByRole('button', { name: 'Save PNG' }).click(),
  ])
  assert.is(image.suggestedFilename(), 'trouser-7.png')
  assert.equal(readFileSync(await image.path()), bytesOf(first))
  await page.keyboard.press('Escape')
  const [grid] = await Promise.all([
    page.waitForEvent('download'),
    page.getByRole('button', { name: 'Save grid' }).click(),
  ])
  assert.is(grid.suggestedFilename(), 'trouser-ankle-boot-7-grid.png')
  const { data, info } = await sharp(await grid.path())
    .extractChannel(0)
    .raw()
    .toBuffer({ resolveWithObject: true })
  assert.equal([info.width, info.height], [66, 32])
  for (const [i, picture] of [first, second].entries()) {
    const pixels = await sharp(bytesOf(picture)).extractChannel(0).raw().toBuffer()
    for (let y = 0; y < 32; y++) {
      const at = y * 66 + i * 34
      assert.equal(data.subarray(at, at + 32), pixels.subarray(y * 32, y * 32 + 32), `row ${y}`)
    }
  }
  const link = page.url()
  assert.match(link, /classes=1\.9&per=1&sampler=dpm%2B%2B&steps=6&guidance=2&seed=7$/)
  await page.goto('about:blank')
  await page.goto(link)
  await ready(page)
  assert.match(await page.innerText('#current .facts'), /6 steps[\s\S]*guidance 2[\s\S]*seed 7/)
  assert.is(await page.isChecked('#lock'), true)
  assert.equal(faults, [])
  await page.context().close()
})

test('another model, with twenty thousand classes', async () => {
  const { page, faults } = await openPage(browser, url)
  await ready(page)
  await page.selectOption('#model', 'many')
  await page.waitForFunction(() =>
    document.querySelector('#about')?.textContent?.includes('24 × 16'),
  )
  await page.click('#class-search')
  assert.is(await page.locator('#class-list [role=option]').count(), 60)
  assert.match(await page.innerText('#class-more'), '19940 more')
  for (const text of ['gray wh', 'whale', '12345']) {
    await page.fill('#class-search', text)
    assert.match(
      await page.locator('#class-list [role=option]').first().innerText(),
      /12345\s+grey whale/,
    )
  }
  await page.keyboard.press('Enter')
  assert.match(await page.innerText('#chips'), 'grey whale')
  await page.keyboard.press('Escape')
  await page.fill('#per', '1')
  await page.fill('#steps', '3')
  await generate(page)
  const { width, height } = await sharp(bytesOf((await pictures(page))[4] ?? '')).metadata()
  assert.equal([width, height], [24, 16])
  assert.equal(faults, [])
  await page.context().close()
})

test('360 pixels wide, in the dark', async () => {
  const options = { viewport: { width: 360, height: 740 }, colorScheme: 'dark' as const }
  const link = `${url}#classes=0.1.9&per=4&steps=4&seed=123456789`
  const { page, faults } = await openPage(browser, link, options)
  await ready(page)
  assert.is(await overflowOf(page), 0)
  await page.click('#class-search')
  assert.is(await overflowOf(page), 0, 'list')
  await page.keyboard.press('Escape')
  await page.click('summary')
  await assertAccessible(page, 'narrow, before a run')
  await generate(page)
  assert.is(await overflowOf(page), 0, 'run')
  // Four in a row, side by side within the window.
  const boxes = await page.$$eval('#current .tile', (all) =>
    all.map((one) => one.getBoundingClientRect()),
  )
  assert.is(boxes.filter(({ top }) => top === boxes[0]?.top).length, 4)
  assert.ok(boxes.every(({ left, right }) => left >= 0 && right <= 360))
  await assertAccessible(page, 'narrow, after a run')
  await page.locator('#current .tile').first().click()
  const dialog = await page.locator('#viewer').boundingBox()
  assert.ok(dialog !== null && dialog.x >= 0 && dialog.width <= 360)
  await assertAccessible(page, 'narrow, one image')
  await page.keyboard.press('Escape')
  await generate(page)
  for (const choose of await page.locator('.choose').all()) await choose.click()
  await page.click('#compare-open')
  assert.is(await overflowOf(page), 0, 'comparing')
  assert.equal(faults, [])
  await page.context().close()
})

test('says what is wrong: settings, a busy server, no server', async () => {
  const { page, faults } = await openPage(browser, `${url}${quick}`)
  await ready(page)
  await page.fill('#per', '9')
  await page.click('#generate')
  assert.match(await page.innerText('#form-problem'), '18 images; this server makes 16 at a time')
  assert.is(await page.evaluate(() => document.activeElement?.id), 'per')
  await page.fill('#per', '1')
  assert.equal(faults, [])

  // Somebody else has all of it: the page waits, and goes on as soon as it may.
  const others = new AbortController()
  const busy = fetch(`${url}v1/images`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ labels: Array(maxImages).fill(0), steps: 250 }),
    signal: others.signal,
  })
  for (let i = 0; i < 500 && demo.stats().lanes === 0; i++) await setTimeout(10)
  await page.click('#generate')
  await page.waitForSelector('#current .trouble:not([hidden])', { timeout: patience })
  assert.match(
    await page.innerText('#current .trouble'),
    /The server is busy\. Asking again in \d+ s/,
  )
  await assertAccessible(page, 'a busy server')
  others.abort()
  await busy.then(
    () => assert.unreachable(),
    () => undefined,
  )
  await stateOf(page, 'done')
  assert.ok(
    faults.every((fault) => /429/.test(fault)),
    faults.join('\n'),
  )

  await page.context().setOffline(true)
  await page.click('#generate')
  await stateOf(page, 'failed')
  assert.match(await page.innerText('#current [role=alert]'), 'The server does not answer')
  await assertAccessible(page, 'no server')
  await page.context().setOffline(false)
  await page.getByRole('button', { name: 'Try again' }).click()
  await stateOf(page, 'done')
  await page.context().close()
})

test('under a prefix, asks for a token where the server does, and keeps it for the tab only', async () => {
  const guarded = await appWith(demo, { token: 'open-sesame', prefix: '/images' })
  try {
    const address = `${await guarded.listen({ port: 0 })}/images`
    const { page, faults } = await openPage(browser, address)
    await page.waitForSelector('#token[open]')
    await assertAccessible(page, 'asking for a token')
    await page.fill('#token-input', 'open-barley')
    await page.keyboard.press('Enter')
    await page.waitForFunction(() =>
      document.querySelector('#token-text')?.textContent?.includes('not the right one'),
    )
    await page.keyboard.press('Escape')
    assert.match(await page.innerText('#current [role=alert]'), 'asks for a token')
    await page.getByRole('button', { name: 'Enter it' }).click()
    await page.fill('#token-input', 'open-sesame')
    await page.keyboard.press('Enter')
    await ready(page)
    await page.fill('#steps', '2')
    await page.fill('#per', '1')
    await generate(page)
    const kept = await page.evaluate(() => [
      sessionStorage.length,
      localStorage.length,
      document.cookie,
    ])
    assert.equal(kept, [1, 0, ''])
    assert.ok(
      faults.every((fault) => /401/.test(fault)),
      faults.join('\n'),
    )
    await page.context().close()
  } finally {
    await guarded.close()
  }
})

test.run()
