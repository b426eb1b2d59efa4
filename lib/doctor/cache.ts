// The cache of Hugging Face repositories, and what the environment says about the hub.

import { constants, existsSync } from 'node:fs'
import { access, lstat, readdir, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { getHFHubCachePath } from '@huggingface/hub'
import type { Problem } from './machine.js'

/** Where downloaded models are kept. */
export interface CacheFacts {
  folder: string
  exists: boolean
  writable: boolean
  /** Models in it. */
  models: number
  /** Bytes of their files. */
  bytes: number
  /** Bytes free on its disk; null: cannot be told. */
  freeBytes: number | null
  /** HF_HUB_OFFLINE: nothing is downloaded. */
  offline: boolean
  /** Whether HF_TOKEN is set; its value is told to nobody. */
  token: boolean
  /** HF_ENDPOINT, without a password; null: the usual one. */
  endpoint: string | null
}

/** A model of the size of DiT-XL/2, with its VAE, in fp32. */
const roomForModel = 4e9

/** @internal */
export async function examineCache(): Promise<{ facts: CacheFacts; problems: Problem[] }> {
  const { HF_TOKEN = '', HF_HUB_OFFLINE = '', HF_ENDPOINT = '' } = process.env
  const folder = path.resolve(getHFHubCachePath())
  const exists = existsSync(folder)
  const writable = await isWritable(nearest(folder))
  const facts: CacheFacts = {
    folder,
    exists,
    writable,
    ...(await contents(folder)),
    freeBytes: await freeBytes(nearest(folder)),
    offline: /^(1|on|yes|true)$/i.test(HF_HUB_OFFLINE),
    token: HF_TOKEN.trim() !== '',
    endpoint: HF_ENDPOINT === '' ? null : withoutPassword(HF_ENDPOINT),
  }
  const problems: Problem[] = []
  const warn = (problem: string, advice: string) => {
    problems.push({ severity: 'warning', problem, advice })
  }
  if (!facts.writable) {
    warn(
      `The cache of Hugging Face models, ${folder}, cannot be written`,
      'Set HF_HOME to a folder that can, or download models elsewhere and load them as folders',
    )
  } else if (facts.freeBytes !== null && facts.freeBytes < roomForModel && !facts.offline) {
    warn(
      `The disk of ${folder} has ${(facts.freeBytes / 1e9).toFixed(1)} GB left; DiT-XL/2 takes 3 GB`,
      'Set HF_HOME to a folder on another disk, or remove models that are not needed',
    )
  }
  if (facts.token && !HF_TOKEN.trim().startsWith('hf_')) {
    warn(
      "HF_TOKEN is no Hugging Face token: it does not start with 'hf_'. Downloads are refused with it",
      'Set it to a token of your account, or unset it: public models need none',
    )
  }
  return { facts, problems }
}

/** The folder, or the nearest around it that exists, where it would be made. */
function nearest(folder: string): string {
  let at = folder
  while (!existsSync(at) && path.dirname(at) !== at) at = path.dirname(at)
  return at
}

async function isWritable(folder: string): Promise<boolean> {
  if (!(await stat(folder)).isDirectory()) return false
  return access(folder, constants.W_OK).then(
    () => true,
    () => false,
  )
}

async function freeBytes(folder: string): Promise<number | null> {
  const { bavail, bsize } = await statfs(folder).catch(() => ({ bavail: null, bsize: 0 }))
  return bavail === null ? null : bavail * bsize
}

/** The files themselves are in blobs/; what is in snapshots/ are links to them. */
async function contents(folder: string): Promise<{ models: number; bytes: number }> {
  const models = (await list(folder)).filter((name) => name.startsWith('models--'))
  let bytes = 0
  for (const model of models) {
    const blobs = path.join(folder, model, 'blobs')
    for (const name of await list(blobs)) {
      // Another process may have removed it just now.
      bytes += await lstat(path.join(blobs, name)).then(
        ({ size }) => size,
        () => 0,
      )
    }
  }
  return { models: models.length, bytes }
}

/** Empty, too, where it is not there, is no folder or may not be read. */
async function list(folder: string): Promise<string[]> {
  return readdir(folder).catch(() => [])
}

function withoutPassword(address: string): string {
  if (!URL.canParse(address)) return '(no address)'
  const { origin, pathname } = new URL(address)
  return `${origin}${pathname}`.replace(/\/$/, '')
}
