// Makes docs/playground.png: the playground in Chromium while the demo model works, with two rows of images
// finished, one forming and one still noise. The letters are those of this machine's font (Inter where it is
// installed: Debian's fonts-inter).
//
//   tsx scripts/playground-picture.ts [--dark] [--out docs/playground.png]
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import sharp from 'sharp'
import { serve } from '../lib/server/index.js'
import { launchBrowser, openPage } from '../test/helpers/browser.js'

const { values } = parseArgs({
  options: {
    dark: { type: 'boolean', default: false },
    out: {
      type: 'string',
      default: fileURLToPath(new URL('../docs/playground.png', import.meta.url)),
    },
  },
})

const settings = '#classes=0.9.2.7&per=4&steps=40&guidance=3&seed=42'
/** Steps of all images together, which are 640. Four images are in the making at a time: rows one after another. */
const wanted = 370

async function main(): Promise<void> {
  const server = await serve({ model: 'demo', port: 0, load: { device: 'cpu', maxBatch: 4 } })
  const browser = await launchBrowser()
  try {
    const { page } = await openPage(browser, `${server.url}/${settings}`, {
      viewport: { width: 1200, height: 890 },
      deviceScaleFactor: 2,
      colorScheme: values.dark ? 'dark' : 'light',
    })
    await page.waitForSelector('#current .tile')
    await page.uncheck('#lock')
    await page.click('#generate')
    await page.waitForFunction(
      (least) => {
        const bar = document.querySelector('#current [role=progressbar]')
        return Number(bar?.getAttribute('aria-valuenow')) >= least
      },
      wanted,
      { polling: 20, timeout: 300_000 },
    )
    const shot = await page.screenshot()
    // Little colour: a palette holds it.
    writeFileSync(
      values.out,
      await sharp(shot).png({ palette: true, colours: 48, effort: 10 }).toBuffer(),
    )
    console.log(values.out)
  } finally {
    await browser.close()
    await server.close()
  }
}

await main()
