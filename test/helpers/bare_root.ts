// A Debian 12 with Node.js, npm and nothing else, without a network: no compiler, no cmake, none of the
// libraries that the build links.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, existsSync, mkdirSync, rmSync, symlinkSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../../lib/root.cjs'

const script = path.join(packageRoot, 'scripts/debian-root')
/** Kept from one run to the next; /app in it is made anew. */
const folder = path.join(packageRoot, 'build/bare-root')

export interface Ended {
  status: number | null
  stdout: string
  stderr: string
}

export class BareRoot {
  /** The folder that is /app inside, empty at first. */
  readonly app = path.join(folder, 'app')

  constructor() {
    if (process.getuid?.() !== 0) {
      throw new Error('only root can make a Debian root with debootstrap: run this test as root')
    }
    execFileSync(script, ['make', 'bookworm', folder], { stdio: ['ignore', 2, 2] })
    const npm = path.join(
      execFileSync('npm', ['root', '-g'], { cwd: '/', encoding: 'utf8' }).trim(),
      'npm',
    )
    for (const name of ['app', 'node_modules', 'root/.npm', 'usr/lib/node_modules']) {
      rmSync(path.join(folder, name), { recursive: true, force: true })
    }
    this.copyIn(npm, '/usr/lib/node_modules/npm')
    copyFileSync(process.execPath, path.join(folder, 'usr/bin/node'))
    for (const name of ['npm', 'npx']) {
      const link = path.join(folder, 'usr/bin', name)
      rmSync(link, { force: true })
      symlinkSync(`../lib/node_modules/npm/bin/${name}-cli.js`, link)
    }
    mkdirSync(this.app)
  }

  copyIn(from: string, to: string): void {
    cpSync(from, path.join(folder, to), { recursive: true, verbatimSymlinks: true })
  }

  /** Whether the file is there, by its path inside. */
  has(file: string): boolean {
    return existsSync(path.join(folder, file))
  }

  /** The folder inside, as the host sees it. */
  outside(name: string): string {
    return path.join(folder, name)
  }

  /** Runs a command of sh in a folder inside. */
  run(command: string, cwd = '/app'): Ended {
    const { status, stdout, stderr, error } = spawnSync(
      script,
      ['offline', folder, '/bin/sh', '-c', `cd ${cwd} && ${command}`],
      {
        encoding: 'utf8',
        env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/root', NO_UPDATE_NOTIFIER: '1' },
        maxBuffer: 2 ** 26,
      },
    )
    if (error) throw error
    return { status, stdout, stderr }
  }
}
