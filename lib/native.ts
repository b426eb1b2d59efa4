import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import type * as Native from '../bindings.js'
import { DiTError } from './errors.js'
import { isError } from './realms.js'
import { modulesFolder, packageRoot } from './root.cjs'

/** The surface of the binary. @internal */
export type Binding = typeof Native

const requireFile = createRequire(path.join(packageRoot, 'package.json'))
const platform = `${process.platform}-${process.arch}`

/** What is tried, in this order: a build of this copy of the sources, then what came with the package. */
const candidates = ['build/Release/dit_native.node', `prebuilds/${platform}/node.napi.glibc.node`]

const buildHint =
  `Binaries are made for linux-x64 with glibc 2.34 or newer; this is ${platform}. To build one here: ` +
  `install cmake, g++ and oneDNN (Debian, Ubuntu: apt-get install cmake g++ libdnnl-dev), then run ` +
  `\`npm run build:native\` in ${packageRoot}`

let binding: Binding | undefined

/** The file of the native part. Throws ERR_DIT_PLATFORM when there is none. @internal */
export function nativeFile(): string {
  if (!isInPackage()) {
    throw new DiTError(
      'ERR_DIT_PLATFORM',
      `dit-native looks for its binary and its model beside its own files, but its code was bundled ` +
        `into ${modulesFolder}. Make it an external package of the bundle (esbuild: ` +
        `external: ['dit-native']; webpack: externals; Next.js: serverExternalPackages), to be ` +
        'installed where the bundle runs',
    )
  }
  const file = candidates.map((name) => path.join(packageRoot, name)).find(existsSync)
  if (file !== undefined) return file
  throw new DiTError('ERR_DIT_PLATFORM', `dit-native has no binary for this machine. ${buildHint}`)
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

function load(): Binding {
  const file = nativeFile()
  let loaded: Binding
  try {
    loaded = requireFile(file) as Binding
  } catch (cause) {
    const reason = isError(cause) ? cause.message : String(cause)
    throw new DiTError('ERR_DIT_PLATFORM', `Cannot load ${file}: ${reason}. ${buildHint}`, {
      cause,
    })
  }
  const { version } = requireFile('./package.json') as { version: string }
  if (loaded.version !== version) {
    throw new DiTError(
      'ERR_DIT_PLATFORM',
      `${file} was built from version ${loaded.version} of dit-native, but this is ${version}. ` +
        `Run \`npm run build:native\` in ${packageRoot}`,
    )
  }
  return loaded
}
