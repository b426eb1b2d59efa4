// `dit convert`: any checkpoint to safetensors.

import type { Command } from 'commander'
import { Option } from 'commander'
import {
  addNameOption,
  addSourceOptions,
  type CommonFlags,
  type Context,
  type NameFlags,
  newCommand,
  type SourceFlags,
  withModel,
} from './command.js'
import { duration } from './units.js'

type ConvertFlags = CommonFlags & SourceFlags & NameFlags & { dtype?: 'fp32' | 'bf16' }

export function convertCommand(context: Context): Command {
  const command = newCommand('convert', 'write a model as safetensors')
    .argument('<model>', 'a folder, a file (.pt, .bin, .safetensors), or a Hugging Face id')
    .argument('<target>', 'a folder, for the diffusers layout, or a name that ends in .safetensors')
    .addOption(
      new Option('--dtype <type>', 'default: as it came, or fp32').choices(['fp32', 'bf16']),
    )
  addSourceOptions(command)
  addNameOption(command)
  return command.action((model: string, target: string, flags: ConvertFlags) =>
    convert(model, target, flags, context),
  )
}

async function convert(
  model: string,
  target: string,
  flags: ConvertFlags,
  context: Context,
): Promise<void> {
  const begin = performance.now()
  const result = await withModel(model, flags, context, async (dit) => {
    await dit.save(target, flags.dtype ? { dtype: flags.dtype } : {})
    const { description, weights, notes } = dit.source
    const seconds = (performance.now() - begin) / 1000
    return { source: description, ...(weights && { weights }), target, notes, seconds }
  })
  const { source, notes, seconds } = result
  context.print(
    flags.json
      ? JSON.stringify(result)
      : [`${source} → ${target}, ${duration(seconds)}`, ...notes].join('\n'),
  )
}
