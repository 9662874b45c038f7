// A static program that names of its C++ runtime only what this line needs.
extern "C" int RunOutOfMemory();

int main() { return RunOutOfMemory(); }
