// A compiler's trees: parsed, folded, copied and dropped, function by function.
//
//   trees [FUNCTIONS]
//
// Nodes of several kinds and sizes own their children. FUNCTIONS (default
// 3,000) trees of up to 4,000 nodes, of which one in ten stays to the end.
// Prints the CPU time per node.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tools/benchmarks/support.h"

namespace {

size_t nodes = 0;

struct Node {
  Node() { ++nodes; }
  virtual ~Node() = default;
  virtual std::unique_ptr<Node> Copy() const = 0;
  virtual bool IsConstant() const { return false; }
  // Replaces children whose own children are all constant.
  virtual void Fold() {}
};

using Tree = std::unique_ptr<Node>;

struct Constant : Node {
  explicit Constant(uint64_t value) : value(value) {}
  Tree Copy() const override { return std::make_unique<Constant>(value); }
  bool IsConstant() const override { return true; }

  uint64_t value;
};

struct Name : Node {
  explicit Name(std::string text) : text(std::move(text)) {}
  Tree Copy() const override { return std::make_unique<Name>(text); }

  std::string text;
};

struct Binary : Node {
  Binary(Tree left, Tree right)
      : left(std::move(left)), right(std::move(right)) {}
  Tree Copy() const override {
    return std::make_unique<Binary>(left->Copy(), right->Copy());
  }
  void Fold() override {
    for (Tree* child : {&left, &right}) {
      (*child)->Fold();
      const auto* binary = dynamic_cast<Binary*>(child->get());
      if (binary != nullptr && binary->left->IsConstant() &&
          binary->right->IsConstant()) {
        *child = std::make_unique<Constant>(1);
      }
    }
  }

  Tree left;
  Tree right;
};

struct Call : Node {
  Call(std::string callee, std::vector<Tree> arguments)
      : callee(std::move(callee)), arguments(std::move(arguments)) {}
  Tree Copy() const override {
    std::vector<Tree> copies;
    for (const Tree& argument : arguments) copies.push_back(argument->Copy());
    return std::make_unique<Call>(callee, std::move(copies));
  }
  void Fold() override {
    for (Tree& argument : arguments) argument->Fold();
  }

  std::string callee;
  std::vector<Tree> arguments;
};

std::string Identifier(bench::Random& random) {
  return std::string(random.Between(1, 40), 'x');
}

Tree Parse(bench::Random& random, int depth) {
  const uint32_t kind = random.Between(0, 9);
  if (depth == 0 || kind == 0) {
    if (random.Between(0, 1) == 0) return std::make_unique<Constant>(kind);
    return std::make_unique<Name>(Identifier(random));
  }
  if (kind <= 6) {
    Tree left = Parse(random, depth - 1);
    return std::make_unique<Binary>(std::move(left), Parse(random, depth - 1));
  }
  std::vector<Tree> arguments;
  for (uint32_t i = random.Between(0, 3); i > 0; --i) {
    arguments.push_back(Parse(random, depth - 1));
  }
  return std::make_unique<Call>(Identifier(random), std::move(arguments));
}

}  // namespace

int main(int argc, char** argv) {
  const size_t functions = bench::Argument(argc, argv, 1, 3'000);
  bench::Random random(1);
  std::vector<Tree> kept;
  const double start_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID);
  for (size_t i = 0; i < functions; ++i) {
    Tree tree = Parse(random, 12);
    tree->Fold();
    Tree inlined = tree->Copy();
    inlined->Fold();
    if (i % 10 == 0) kept.push_back(std::move(inlined));
  }
  kept.clear();
  const double cpu_ns = bench::NowNs(CLOCK_PROCESS_CPUTIME_ID) - start_ns;
  bench::Print("time", cpu_ns / static_cast<double>(nodes), "ns");
}
