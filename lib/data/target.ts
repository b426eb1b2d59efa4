// What a model takes, and which labels it has.

import { DiTError, invalidOption } from '../errors.js'
import { resolveLabels } from '../labels.js'
import type { OpenDataOptions } from './types.js'

type Model = OpenDataOptions['model']

/** The size of what a model takes. */
type ModelSize = Pick<Model, 'channels' | 'latentSize' | 'vae'>

/** [channels, height, width]. */
export type Shape = readonly [channels: number, height: number, width: number]

/** Images as the model, or its VAE, takes them. */
export function imageShape({ channels, latentSize: [height, width], vae }: ModelSize): Shape {
  if (vae === undefined) return [channels, height, width]
  return [vae.inChannels, height * vae.downscale, width * vae.downscale]
}

/** Of pictures: one channel of grey, or three. */
export type PictureShape = readonly [channels: 1 | 3, height: number, width: number]

/** As `imageShape`. Throws ERR_DIT_OPTION unless pictures can have so many channels. */
export function pictureShape(model: ModelSize): PictureShape {
  const [channels, height, width] = imageShape(model)
  if (channels === 1 || channels === 3) return [channels, height, width]
  throw new DiTError(
    'ERR_DIT_OPTION',
    `The model takes ${channels} channels, but pictures have 1 or 3. Give the model a VAE (the option ` +
      'vae), train on features, or give latents',
  )
}

/** Throws ERR_DIT_OPTION when the data has more classes than the model. */
export function checkClassCount(data: string, count: number, { numClasses }: Model): void {
  if (count <= numClasses) return
  throw new DiTError(
    'ERR_DIT_OPTION',
    `${data} has ${count} classes, the model ${numClasses}. Make or load the model with numClasses ` +
      `${count} or more (dit train --num-classes, with --model)`,
  )
}

/** A class by its number or name. Throws ERR_DIT_OPTION that names the item. */
export function itemLabel(name: string, label: unknown, model: Model): number {
  if (typeof label !== 'number' && typeof label !== 'string') {
    throw invalidOption(`the label of ${name}`, 'a class number or a class name', label)
  }
  const config = { numClasses: model.numClasses, nullClass: false, hidden: 0 }
  const { classes } = resolveLabels(label, config, model.classNames, `the label of ${name}`)
  return classes[0] as number
}
