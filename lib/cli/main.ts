#!/usr/bin/env node
// The command `dit`: a thin shell over the public API.
//
// Exit status: 0 done, 1 it failed (`dit doctor`: the package cannot be used), 2 the command line is
// wrong (a DiTError with ERR_DIT_OPTION too), 130 interrupted. Results go to stdout, everything else to
// stderr.

import { Command, CommanderError } from 'commander'
import { DiTError } from '../errors.js'
import { packageVersion } from '../version.js'
import type { CommonFlags, Context } from './command.js'
import { convertCommand } from './convert.js'
import { doctorCommand } from './doctor.js'
import { featuresCommand } from './features.js'
import { infoCommand } from './info.js'
import { sampleCommand } from './sample.js'
import { serveCommand } from './serve.js'
import { trainCommand } from './train.js'

const exitFailed = 1
const exitUsage = 2
const exitInterrupted = 130

async function main(args: string[]): Promise<number> {
  const interrupted = new AbortController()
  const context: Context = {
    signal: interrupted.signal,
    print: (text) => process.stdout.write(`${text}\n`),
    status: 0,
  }
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    process.exit() // who read the results has seen enough: `dit info demo | head -3`
  })
  // The second time, nothing is waited for.
  process.once('SIGINT', () => interrupted.abort())

  let debug = ['1', 'true'].includes(process.env.DIT_DEBUG ?? '')
  const makers = [
    sampleCommand,
    trainCommand,
    featuresCommand,
    infoCommand,
    convertCommand,
    serveCommand,
  ]
  const commands = [...makers, doctorCommand].map((make) => make(context))
  const program = new Command('dit')
    .description('Diffusion Transformers: sample, train, inspect, convert and serve them')
    .version(packageVersion())
    .hook('preAction', (_, command) => {
      debug ||= (command.opts() as CommonFlags).debug === true
    })
  for (const command of commands) program.addCommand(command)
  for (const command of [program, ...commands]) {
    command.exitOverride().configureOutput({
      outputError: (text, write) => write(text.replace(/^error: /, 'dit: ')),
    })
  }

  try {
    await program.parseAsync(args)
    return context.status
  } catch (error) {
    if (interrupted.signal.aborted && error === interrupted.signal.reason) {
      process.stderr.write('dit: interrupted\n')
      return exitInterrupted
    }
    // Commander has printed its own errors, and help, which is none.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : exitUsage
    process.stderr.write(`${describe(error)}\n`)
    if (debug) console.error(error)
    return error instanceof DiTError && error.code === 'ERR_DIT_OPTION' ? exitUsage : exitFailed
  }
}

/** `dit: message (CODE)`, in one line. */
function describe(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error)
  const code = (error as Partial<DiTError> | null)?.code
  const text = message.replace(/\s*\n\s*/g, ' ')
  return code === undefined ? `dit: ${text}` : `dit: ${text} (${code})`
}

main(process.argv).then((status) => {
  process.exitCode = status
})
