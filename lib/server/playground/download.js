// Pictures as files.

import { h } from './dom.js'

/** @import { Run, RunImage } from './run.js' */

/** Between the images of a grid, in pixels. */
const gap = 2

/** @param {string} text */
function slug(text) {
  return (
    text
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, '-')
      .replace(/^-|-$/g, '') || 'image'
  )
}

/**
 * @param {string} url
 * @param {string} name
 */
function save(url, name) {
  const link = h('a', { href: url, download: name, hidden: true })
  document.body.append(link)
  link.click()
  link.remove()
}

/** @param {RunImage} image One that is finished. */
export function saveImage({ name, seed, source }) {
  if (source !== undefined) save(source, `${slug(name)}-${seed}.png`)
}

/** All finished images of a run in one PNG, pixel for pixel, as the sheet shows them. @param {Run} run */
export async function saveGrid(run) {
  const { images, settings, model } = run
  const { width, height } = model.dit.image
  const columns = settings.per > 1 ? settings.per : Math.ceil(Math.sqrt(images.length))
  const rows = Math.ceil(images.length / columns)
  const canvas = h('canvas', {
    width: columns * (width + gap) - gap,
    height: rows * (height + gap) - gap,
  })
  const context = canvas.getContext('2d')
  if (context === null) return
  for (const [i, { source }] of images.entries()) {
    if (source === undefined) continue
    const image = new Image()
    image.src = source
    await image.decode()
    context.drawImage(
      image,
      (i % columns) * (width + gap),
      Math.floor(i / columns) * (height + gap),
    )
  }
  const blob = await new Promise((/** @type {BlobCallback} */ resolve) => canvas.toBlob(resolve))
  if (blob === null) return
  const url = URL.createObjectURL(blob)
  const name = [...new Set(images.map((image) => slug(image.name)))].slice(0, 3).join('-')
  save(url, `${name}-${settings.seed}-grid.png`)
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}
