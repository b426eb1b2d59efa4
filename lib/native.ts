import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import type * as Native from '../bindings.js'
import { systemFacts } from './doctor/machine.js'
import { DiTError } from './errors.js'
import { buildAdvice, type Unfit, whyAbsent, whyRefused } from './platform.js'
import { isError } from './realms.js'
import { modulesFolder, packageRoot } from './root.cjs'

/** The surface of the binary. @internal */
export type Binding = typeof Native

const requireFile = createRequire(path.join(packageRoot, 'package.json'))

/**
 * What is tried, in this order (that of node-gyp-build): a build of this copy of the sources, then what
 * came with the package.
 */
const binaries: readonly string[] = [
  'build/Release/dit_native.node',
  `prebuilds/${process.platform}-${process.arch}/node.napi.glibc.node`,
].map((name) => path.join(packageRoot, name))

let binding: Binding | undefined

function unusable({ problem, advice }: Unfit, cause?: unknown): DiTError {
  return new DiTError('ERR_DIT_PLATFORM', `${problem}. ${advice}`, { cause })
}

/** The file of the native part. Throws ERR_DIT_PLATFORM when there is none. @internal */
export function nativeFile(): string {
  if (!isInPackage()) {
    throw unusable({
      problem:
        'dit-native looks for its binary and its model beside its own files, but its code was bundled ' +
        `into ${modulesFolder}`,
      advice:
        "Make it an external package of the bundle (esbuild: external: ['dit-native']; webpack: " +
        'externals; Next.js: serverExternalPackages), to be installed where the bundle runs',
    })
  }
  const file = binaries.find(existsSync)
  if (file === undefined) throw unusable(whyAbsent(systemFacts(), packageRoot))
  return file
}

/**
 * The native part, loaded when it is first needed.
 *
 * Throws ERR_DIT_PLATFORM when there is no binary for this machine, or none that it can load, with
 * what to do.
 *
 * @internal
 */
export function native(): Binding {
  binding ??= load()
  return binding
}

/** Whether this module stands where the package has it: in a bundle it does not. */
function isInPackage(): boolean {
  const file = path.join(packageRoot, 'package.json')
  return existsSync(file) && (requireFile(file) as { name?: string }).name === 'dit-native'
}

/**
 * How often a thread that waits for the others looks before it sleeps. libgomp's own 300 000 times, some
 * milliseconds, are the others' while they need the processor: beside other work an image took 20 to 50 times
 * as long. So few cost 3 % of DiT-S/2's time on a processor that is all ours. libgomp reads it when it is
 * loaded, from the process's environment, which a worker's `process.env` does not change.
 */
const spins = '1000'

function load(): Binding {
  const file = nativeFile()
  if (process.env.OMP_WAIT_POLICY === undefined) process.env.GOMP_SPINCOUNT ??= spins
  let loaded: Binding
  try {
    loaded = requireFile(file) as Binding
  } catch (cause) {
    const reason = isError(cause) ? cause.message : String(cause)
    const otherwise = {
      problem: `The binary ${file} cannot be loaded: ${reason}`,
      advice: `\`dit doctor\` says what it lacks. Install the package anew, or ${buildAdvice(packageRoot)}`,
    }
    throw unusable(whyRefused(file, reason, systemFacts(), packageRoot) ?? otherwise, cause)
  }
  const { version } = requireFile('./package.json') as { version: string }
  if (loaded.version !== version) {
    throw unusable({
      problem: `The binary ${file} is of version ${loaded.version}, the package of ${version}`,
      advice: `Install the package anew, or ${buildAdvice(packageRoot)}`,
    })
  }
  return loaded
}
