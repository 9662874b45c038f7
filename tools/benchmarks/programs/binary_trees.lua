-- Builds, walks and drops binary trees beside one that lives on: blocks of a few
-- sizes, freed by the collector in the order in which it sweeps.
--
-- usage: lua binary_trees.lua [DEPTH]

local function grow(depth)
  if depth == 0 then return {} end
  return { grow(depth - 1), grow(depth - 1) }
end

local function count(tree)
  if not tree[1] then return 1 end
  return 1 + count(tree[1]) + count(tree[2])
end

local max_depth = tonumber(arg and arg[1]) or 14
local min_depth = 4

local survivor = grow(max_depth)
for depth = min_depth, max_depth, 2 do
  local trees = 1 << (max_depth - depth + min_depth)
  local nodes = 0
  for _ = 1, trees do nodes = nodes + count(grow(depth)) end
  print(string.format("%d trees of depth %d: %d nodes", trees, depth, nodes))
end
print(string.format("the survivor of depth %d: %d nodes", max_depth, count(survivor)))
