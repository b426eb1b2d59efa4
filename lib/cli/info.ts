// `dit info`: what a model is, from the headers of its files alone.

import type { Command } from 'commander'
import { type DeviceInfo, listDevices } from '../devices.js'
import { resolveSource } from '../formats/source.js'
import type { LoadedSource } from '../formats/types.js'
import { demoOption } from '../loading.js'
import { downscale } from '../sampling.js'
import {
  addSourceOptions,
  type CommonFlags,
  type Context,
  newCommand,
  pick,
  type SourceFlags,
} from './command.js'
import { decodeCost, forwardCost, parameterCount, weightBytes } from './cost.js'
import { Progress } from './progress.js'
import { columns, scaled } from './units.js'

type InfoFlags = CommonFlags & SourceFlags

export function infoCommand(context: Context): Command {
  const command = newCommand('info', 'tell what a model is; reads no weights').argument(
    '<model>',
    'a folder, a file, a Hugging Face id, or demo',
  )
  addSourceOptions(command)
  return command.action((model: string, flags: InfoFlags) => info(model, flags, context))
}

async function info(model: string, flags: InfoFlags, context: Context): Promise<void> {
  const progress = new Progress({ quiet: flags.quiet === true })
  let source: LoadedSource
  try {
    source = await resolveSource(model, {
      ...pick(flags, 'weights', 'config', 'vae', 'revision'),
      ...demoOption(model),
      signal: context.signal,
      onProgress: progress.load,
    })
  } finally {
    progress.end()
  }
  const facts = { ...describe(source), devices: await listDevices() }
  context.print(flags.json ? JSON.stringify(facts) : table(facts))
}

/** Sides of pictures, in pixels, that the cost is given for beside the model's own. */
const pictureSizes = [256, 512]

function describe(source: LoadedSource) {
  const { config, tensors } = source.dit
  const { vae } = source
  // Without a VAE: latents of four channels are those of Stable Diffusion's, a factor of 8.
  const pixelsPerLatent = vae ? downscale(vae.config) : config.channels === 4 ? 8 : 1
  const own = config.latentSize
  const others = pictureSizes
    .map((size) => size / pixelsPerLatent)
    .filter((size) => size % config.patchSize === 0 && (size !== own[0] || size !== own[1]))
    .map((size): [number, number] => [size, size])
  return {
    source: {
      description: source.description,
      kind: source.kind,
      ...pick(source, 'weights', 'hub'),
      notes: source.notes,
    },
    config,
    parameters: parameterCount(tensors),
    forward: [own, ...others].map((latentSize) => ({
      latentSize,
      imageSize: latentSize.map((length) => length * pixelsPerLatent),
      tokens: (latentSize[0] / config.patchSize) * (latentSize[1] / config.patchSize),
      ...forwardCost(config, latentSize),
    })),
    weightBytes: { fp32: weightBytes(tensors, 'fp32'), bf16: weightBytes(tensors, 'bf16') },
    vae: vae
      ? {
          source: vae.description,
          config: vae.config,
          parameters: parameterCount(vae.tensors),
          decode: decodeCost(vae.config, own),
        }
      : null,
    schedule: source.schedule,
    classNames: source.id2label ?? {},
  }
}

type Facts = ReturnType<typeof describe> & { devices: DeviceInfo[] }

function table(facts: Facts): string {
  const { source, config, vae, schedule } = facts
  const rows: [string, string][] = [
    ['weights', source.description],
    ...source.notes.map((note): [string, string] => ['', note]),
    [
      'size',
      `depth ${config.depth}, hidden ${config.hidden}, ${config.heads} heads, MLP ${config.mlpHidden}, ` +
        `patch ${config.patchSize}`,
    ],
    [
      'latent',
      `${config.latentSize.join('×')}, ${channels(config.channels)}, ` +
        `variance ${config.learnSigma ? 'learned' : 'fixed'}`,
    ],
    ['classes', classes(facts)],
    ['parameters', scaled(facts.parameters, '')],
    [
      'memory',
      `weights ${scaled(facts.weightBytes.fp32, 'B')} in fp32, ` +
        `${scaled(facts.weightBytes.bf16, 'B')} in bf16`,
    ],
    ...facts.forward.map(({ imageSize, tokens, macs, flops }, i): [string, string] => [
      i === 0 ? 'one forward' : '',
      `${imageSize.join('×')} pixels: ${tokens} tokens, ${scaled(macs, 'MAC', 4)}, ` +
        scaled(flops, 'FLOP', 4),
    ]),
    ['', 'MAC: multiply-accumulate, two FLOP; what the DiT paper calls flops are MAC'],
    [
      'schedule',
      `${schedule.kind}, ${schedule.steps} steps` +
        (schedule.kind === 'linear' ? `, beta ${schedule.betaStart} to ${schedule.betaEnd}` : ''),
    ],
  ]
  if (vae) {
    rows.push(
      ['VAE', vae.source],
      [
        '',
        `channels ${vae.config.blockOutChannels.join(', ')}, ${scaled(vae.parameters, '')} parameters, ` +
          `scaling ${vae.config.scalingFactor}`,
      ],
      ['', `one decode: ${scaled(vae.decode.macs, 'MAC')} = ${scaled(vae.decode.flops, 'FLOP')}`],
    )
  } else rows.push(['VAE', 'none'])
  for (const [i, device] of facts.devices.entries()) {
    rows.push([i === 0 ? 'devices' : '', `${device.device}: ${deviceLine(device)}`])
  }
  return columns(rows)
}

export function deviceLine(device: DeviceInfo): string {
  if (!device.available) return `not here: ${device.reason}`
  const kind =
    device.device === 'cpu'
      ? `${device.isa}, ${device.threads} threads`
      : `compute capability ${device.computeCapability}, kernels for ${device.arch}`
  const precisions = device.precisions.join(' and ')
  return `${device.name}, ${kind}, ${precisions}, ${scaled(device.memoryBytes, 'B')}`
}

function channels(n: number): string {
  return n === 1 ? '1 channel' : `${n} channels`
}

function classes({ config, classNames }: ReturnType<typeof describe>): string {
  const [first] = Object.values(classNames)
  const named = first === undefined ? 'no names' : `named, the first '${first}'`
  return `${config.numClasses}, ${config.nullClass ? 'and none' : 'no null class'}; ${named}`
}
