package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// layer is one packed layer on disk.
type layer struct {
	File, Digest, DiffID string
	Packed, Plain, Files int64
	Sources              []string
}

// Of each layer: the folders that it is made of, in order, and the bytes of files to take, in MiB. The sizes sum up to 790.
var parts = []struct {
	mebibytes int64
	sources   []string
}{
	{90, []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/gcc", "/usr/lib"}},
	{60, []string{"/usr/share"}},
	{230, []string{goRoot(), "/usr/lib/go-1.19", "/root/go", "/usr/lib"}},
	{250, []string{rustRoot(), "/usr/lib/llvm-14", "/usr/lib"}},
	{100, []string{"/usr/lib/python3", "/usr/lib/python3.11", "/usr/lib/llvm-19", "/usr/lib/git-core", "/usr/lib"}},
	{60, []string{"/root/.cargo/registry/src", "/usr/include", "/usr/share/perl", "/usr/lib"}},
}

func goRoot() string {
	if root := os.Getenv("GOROOT"); root != "" {
		return root
	}
	return "/usr/local/go"
}

func rustRoot() string {
	home := os.Getenv("RUSTUP_HOME")
	if home == "" {
		home = filepath.Join(os.Getenv("HOME"), ".rustup")
	}
	return filepath.Join(home, "toolchains")
}

// layers makes the layers, two at a time, or reads what an earlier call made.
func layers(out string) ([]*layer, error) {
	index := filepath.Join(out, "layers.json")
	var made []*layer
	if text, err := os.ReadFile(index); err == nil {
		return made, json.Unmarshal(text, &made)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	made = make([]*layer, len(parts))
	failed := make([]error, len(parts))
	var group sync.WaitGroup
	slots := make(chan struct{}, 2)
	for n, part := range parts {
		group.Add(1)
		go func() {
			defer group.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			file := filepath.Join(out, fmt.Sprintf("layer-%d.tar.gz", n))
			made[n], failed[n] = pack(file, part.sources, part.mebibytes<<20)
		}()
	}
	group.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(made, "", "  ")
	if err != nil {
		return nil, err
	}
	return made, os.WriteFile(index, text, 0o644)
}

// counted counts and hashes what goes through it.
type counted struct {
	to    io.Writer
	sum   hash.Hash
	bytes int64
}

func (c *counted) Write(data []byte) (int, error) {
	c.sum.Write(data)
	c.bytes += int64(len(data))
	return c.to.Write(data)
}

func (c *counted) digest() string { return "sha256:" + hex.EncodeToString(c.sum.Sum(nil)) }

var errFull = errors.New("the layer has its size")

func pack(path string, sources []string, budget int64) (*layer, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	packed := &counted{to: file, sum: sha256.New()}
	// As images come: gzip at its usual level.
	zip := gzip.NewWriter(packed)
	plain := &counted{to: zip, sum: sha256.New()}
	archive := tar.NewWriter(plain)
	made := &layer{File: path}
	left := budget
	for _, source := range sources {
		if left <= 0 {
			break
		}
		if _, err := os.Stat(source); err != nil {
			continue
		}
		made.Sources = append(made.Sources, source)
		err := filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if left <= 0 {
				return errFull
			}
			return add(archive, made, path, entry, &left, budget/4)
		})
		if err != nil && !errors.Is(err, errFull) {
			return nil, err
		}
	}
	if left > budget/20 {
		return nil, fmt.Errorf("%v hold only %d of %d MiB", sources, (budget-left)>>20, budget>>20)
	}
	if err := errors.Join(archive.Close(), zip.Close(), file.Sync()); err != nil {
		return nil, err
	}
	made.Packed, made.Plain, made.Digest, made.DiffID = packed.bytes, plain.bytes, packed.digest(), plain.digest()
	return made, nil
}

func add(archive *tar.Writer, made *layer, path string, entry fs.DirEntry, left *int64, largest int64) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	target := ""
	switch {
	// A few large files must not be all of a layer, nor the last one make it much larger.
	case info.Mode().IsRegular() && info.Size() > min(*left, largest):
		return nil
	case info.Mode().IsRegular(), info.IsDir():
	case info.Mode()&fs.ModeSymlink != 0:
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	default:
		return nil
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name = path[1:]
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	header.ModTime = header.ModTime.Truncate(time.Second)
	if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	source, err := os.Open(path)
	if err != nil {
		return err
	}
	defer source.Close()
	if _, err := io.CopyN(archive, source, header.Size); err != nil {
		return err
	}
	made.Files++
	// With the header and the padding of the archive.
	*left -= header.Size + 1024
	return nil
}
