// `dit doctor`: what is here, what is wrong with it, and what to do.

import type { Command } from 'commander'
import { type Diagnosis, diagnose } from '../doctor/doctor.js'
import type { LimitFacts, Problem, SystemFacts } from '../doctor/machine.js'
import { type CommonFlags, type Context, newCommand } from './command.js'
import { deviceLine } from './info.js'
import { columns, duration, scaled } from './units.js'

export function doctorCommand(context: Context): Command {
  const command = newCommand('doctor', 'examine this machine, and say what helps')
  return command.action(async (flags: CommonFlags) => {
    const diagnosis = await diagnose({ signal: context.signal })
    context.print(flags.json ? JSON.stringify(diagnosis) : report(diagnosis))
    if (!diagnosis.usable) context.status = 1
  })
}

/** The diagnosis for people. */
export function report(diagnosis: Diagnosis): string {
  const { problems, usable } = diagnosis
  const errors = problems.filter(({ severity }) => severity === 'error').length
  const last = usable
    ? problems.length === 0
      ? 'dit-native works here.'
      : 'dit-native works here, with what is said above.'
    : `dit-native does not work here: ${errors === 1 ? 'one error' : `${errors} errors`}.`
  return [columns(table(diagnosis)), ...problems.map(describe), last].join('\n\n')
}

function describe({ severity, problem, advice }: Problem): string {
  return `${severity}: ${problem}\n  → ${advice}`
}

type Row = readonly [name: string, value: string]

function table(diagnosis: Diagnosis): Row[] {
  const { binary, cache, devices, limits, nvidia, selfTest, sharp, system } = diagnosis
  const missing = Object.entries(diagnosis.server).filter(([, version]) => version === null)
  const cards = nvidia.cards === 1 ? '1 card' : `${nvidia.cards} cards`
  return [
    ['package', `dit-native ${diagnosis.package.version}, ${diagnosis.package.folder}`],
    ['node', `${system.node}, ${systemLine(system)}`],
    [
      'binary',
      binary.file === null
        ? 'none for this machine'
        : `${binary.file}, ${binary.origin}, ${binary.loads ? `version ${binary.version}` : 'cannot be loaded'}`,
    ],
    ['CUDA library', binary.cudaLibrary ?? 'none beside the binary'],
    [
      'NVIDIA',
      nvidia.cards === 0 && nvidia.driver === null
        ? 'no GPU seen'
        : `${cards}, ${nvidia.driver === null ? 'no driver loaded' : `driver ${nvidia.driver}`}`,
    ],
    ...devices.map((device, i): Row => {
      return [i === 0 ? 'devices' : '', `${device.device}: ${deviceLine(device)}`]
    }),
    ['processors', processorLine(limits)],
    [
      'memory',
      `${scaled(limits.memory, 'B')}, ${scaled(limits.memoryAvailable, 'B')} available` +
        (limits.memoryLimit === null ? '' : `; limited to ${scaled(limits.memoryLimit, 'B')}`),
    ],
    ['pictures', sharp === null ? 'sharp cannot be loaded' : `sharp ${sharp}`],
    [
      'server',
      missing.length === 0
        ? 'all that `dit serve` needs is installed'
        : `to use \`dit serve\`: npm install ${missing.map(([name]) => name).join(' ')}`,
    ],
    [
      'cache',
      `${cache.folder}, ${cache.exists ? `${cache.models === 1 ? '1 model' : `${cache.models} models`}, ${scaled(cache.bytes, 'B')}` : 'not there yet'}` +
        (cache.freeBytes === null ? '' : `, ${scaled(cache.freeBytes, 'B')} free`) +
        (cache.writable ? '' : ', cannot be written'),
    ],
    [
      'hub',
      [
        cache.offline ? 'offline (HF_HUB_OFFLINE)' : 'downloads allowed',
        cache.token ? 'HF_TOKEN is set' : 'no HF_TOKEN',
        ...(cache.endpoint === null ? [] : [`HF_ENDPOINT ${cache.endpoint}`]),
      ].join(', '),
    ],
    [
      'self-test',
      selfTest === null
        ? 'not run'
        : !selfTest.passed
          ? 'failed'
          : `demo, ${selfTest.device} in ${selfTest.precision}: loaded in ${duration(selfTest.loadSeconds)}, ` +
            `${selfTest.steps} steps in ${duration(selfTest.sampleSeconds)}`,
    ],
  ]
}

function systemLine({ platform, arch, distribution, release, glibc, libc }: SystemFacts): string {
  const parts = [`${platform}-${arch}`, distribution, `kernel ${release}`]
  if (libc !== null) parts.push(glibc === null ? libc : `glibc ${glibc}`)
  return parts.filter((part) => part !== null).join(', ')
}

function processorLine({ processors, cpuLimit }: LimitFacts): string {
  if (cpuLimit === null) return `${processors}, no limit`
  return `${processors}, limited to the time of ${Math.round(cpuLimit * 10) / 10}`
}
